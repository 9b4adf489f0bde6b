"""Workers that crash, hang or use too much memory cost one result each; too many failures end a run."""

import ctypes
import io
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from odvae.clips import loader as clip_loader
from odvae.clips.clip import load_clip
from odvae.clips.dataset import ClipDataset
from odvae.clips.loader import each_clip, endless_loader
from odvae.clips.samplers import BatchPlan, StepSampler
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError, UnfitError
from odvae.running.failures import Failure
from odvae.running.worker_pool import WorkerPool
from odvae.video.decoding import decoding
from odvae.video.video_io import write_video


def misbehave(task):
    if task == "crash":
        ctypes.string_at(0)
    if task == "hang":
        ctypes.PyDLL(None).sleep(60)  # in C and holding Python's lock, as a stuck decoder does
    if task == "eat memory":
        return len(bytearray(2**30))
    if task == "bad input":
        raise InputError("x.mp4: is no video")
    if task == "bug":
        raise ZeroDivisionError("a bug of ours")
    return task


def test_a_crash_a_hang_and_a_memory_hog_cost_one_result_each_and_keep_the_order():
    tasks = [0, "crash", 1, "hang", 2, "eat memory", "bad input", 3]
    begin = time.monotonic()
    with WorkerPool(misbehave, workers=2, seconds=0.5, memory_gib=0.25) as pool:
        results = list(pool.map(tasks, ahead=8))
    assert time.monotonic() - begin < 20
    assert [result for result in results if not isinstance(result, Failure)] == [0, 1, 2, 3]
    reasons = [result.reason for result in results if isinstance(result, Failure)]
    assert reasons == [
        "crashed its process (SIGSEGV)",
        "took longer than 0.5 s",
        "needs more than 0.25 GiB of memory",
        "x.mp4: is no video",
    ]


def test_a_worker_that_is_ended_while_it_draws_a_progress_bar_stops_nobody_elses():
    def draw(task):
        with tqdm.get_lock():
            time.sleep(60 if task == "hang" else 0)
        return task

    def draw_here():
        tqdm(total=1, disable=False, file=io.StringIO()).close()
        drawn.set()

    drawn = threading.Event()
    tqdm.set_lock(TqdmDefaultWriteLock())  # as after the first progress bar of this process
    with WorkerPool(draw, workers=1, seconds=0.5, memory_gib=0.25) as pool:
        first, second = pool.map(["hang", "next"], ahead=2)
        threading.Thread(target=draw_here, daemon=True).start()
        assert drawn.wait(20)
    assert (first, second) == (Failure("took longer than 0.5 s", "limit"), "next")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_raised_with_its_traceback_and_the_name_of_the_task(workers):
    with (
        WorkerPool(misbehave, workers, seconds=5, name_of=lambda task: f"clip {task}") as pool,
        pytest.raises(RuntimeError, match=r"at clip bug:(?s:.*)a bug of ours"),
    ):
        pool.result(pool.submit("bug"))


@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_a_decoder_raises_is_a_failure_that_names_the_file(workers):
    def decode(error):
        with decoding("x.mp4"):
            raise error

    errors = [
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        TypeError("two\nlines"),
        ZeroDivisionError(),
        KeyError(1),
    ]
    with WorkerPool(decode, workers, seconds=5) as pool:
        results = list(pool.map([*errors, MemoryError(), UnfitError("x.mp4: too short")], ahead=9))
    reasons = [result.reason for result in results]
    assert reasons[1:4] == [
        "x.mp4: cannot be decoded as a video (TypeError: two)",
        "x.mp4: cannot be decoded as a video (ZeroDivisionError)",
        "x.mp4: cannot be decoded as a video (KeyError: 1)",
    ]
    assert reasons[0].startswith("x.mp4: cannot be decoded as a video (UnicodeDecodeError")
    assert [result.cause for result in results] == ["task"] * 4 + ["limit", "unfit"]


DATA = DataSettings(frames=5, height=32, width=32, held_out=0.3, workers=2, failures_allowed=0.2, decode_seconds=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Ten videos, each of one gray of its own."""
    folder = tmp_path_factory.mktemp("gray")
    (folder / "videos").mkdir()
    for i in range(14):
        write_video(folder / "videos" / f"{i}.mp4", np.full((6, 32, 32, 3), 20 + 15 * i, np.uint8), 8)
    pack_folder(folder / "videos", folder / "shards", PackingSettings(workers=0))
    return VideoSet(folder / "shards", DATA, "?")


class Deadly(ClipDataset):
    """Kills the process that decodes certain videos."""

    deadly: frozenset = frozenset()

    def clip_of(self, sample, number):
        if sample.key in self.deadly:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().clip_of(sample, number)


def batches(dataset, workers, steps=4):
    dataset.data = dataset.data.model_copy(update={"workers": workers})
    loader = endless_loader(dataset, StepSampler(BatchPlan(5)))
    return torch.stack([next(loader)["video"] for _ in range(steps)]).flatten(0, 1)


def test_training_continues_with_another_clip_if_one_kills_its_decoder(videos, capsys):
    dataset = Deadly(videos.train, DATA, seed=0)
    healthy = batches(dataset, workers=2)
    dataset.deadly = {dataset.source(3, 0).key}
    hurt, again = batches(dataset, workers=2), batches(dataset, workers=1)
    assert torch.equal(hurt, again)  # what takes its place follows from the sample's number too
    changed = [n for n in range(20) if not torch.equal(hurt[n], healthy[n])]
    assert changed == [n for n in range(20) if dataset.source(n, 0).key in dataset.deadly]
    errors = capsys.readouterr().err
    assert errors.count("left out: ") == 2  # once a loader
    assert f"{dataset.source(3, 0).name}: crashed its process (SIGSEGV) (1 of {len(videos.train)} training" in errors


def test_training_ends_after_too_many_failures(videos):
    dataset = Deadly(videos.train, DATA, seed=0)
    dataset.deadly = {sample.key for sample in videos.train[:4]}
    with pytest.raises(InputError, match=r"of 1?[0-9] training videos could not be used"):
        batches(dataset, workers=2)


def test_training_ends_once_no_video_is_left_however_many_failures_are_allowed(videos):
    dataset = Deadly(videos.train, DATA.model_copy(update={"failures_allowed": 1.0}), seed=0)
    dataset.deadly = {sample.key for sample in videos.train}
    with pytest.raises(InputError, match=rf"none of the {len(videos.train)} training videos can be used:\n .*SIGSEGV"):
        batches(dataset, workers=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_for_validation_come_in_order_without_those_that_cannot_be_decoded(videos, workers, monkeypatch, capsys):
    broken = videos.samples[2].key

    def load(sample, data, start):
        if sample.key == broken:
            raise InputError(f"{sample.name}: ends before frame 3")
        return load_clip(sample, data, start)

    monkeypatch.setattr(clip_loader, "load_clip", load)
    data = DATA.model_copy(update={"workers": workers})
    found = [(place, clip.clone()) for place, clip in each_clip(videos.samples, data, len(videos.samples))]
    assert [place for place, _ in found] == [place for place in range(len(videos.samples)) if place != 2]
    clips = [clip for _, clip in found]
    expected = [load_clip(sample, DATA) for sample in videos.samples if sample.key != broken]
    assert torch.equal(torch.stack(clips), torch.stack(expected))
    assert f"ends before frame 3 (1 of {len(videos.samples)} videos so far)" in capsys.readouterr().err
