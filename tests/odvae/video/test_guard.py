"""Whatever a decoder raises costs the one file it was raised for, in every place where videos are decoded."""

import os
import tarfile

import av
import numpy as np
import pytest
from PIL import Image

from ldm.evaluation.real_clips import decodable_clips
from ldm.sample import read_first_frame
from odvae.clips.dataset import ClipDataset
from odvae.clips.loader import each_clip, endless_loader
from odvae.clips.samplers import BatchPlan, StepSampler
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.packing import examining, writing
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError
from odvae.running.failures import Failures
from odvae.video.video_io import write_video

MARK = b"\0\0\0\x0cfreeMARK"  # a box that players skip, by which the video is known that raises

ERRORS = [
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    OSError(5, "Input/output error"),
    AssertionError(),
    KeyError("rotate"),
    IndexError("list index out of range"),
    ZeroDivisionError("Fraction(1, 0)"),
    StopIteration(),
    EOFError(),
    RecursionError("maximum recursion depth exceeded"),
    NotImplementedError(),
    RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
    SystemError("returned a result with an exception set"),
]
DATA = DataSettings(frames=5, height=32, width=32, held_out=0.4, workers=0, failures_allowed=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight videos, one of which has the mark."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(8):
        write_video(folder / f"{i}.mp4", np.full((9, 32, 32, 3), 20 + 25 * i, np.uint8), 8)
    with open(folder / "3.mp4", "ab") as file:
        file.write(MARK)
    return folder


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack_folder(folder, out, PackingSettings(workers=0))
    return out


def foreign_shards(folder, out):
    """The videos as others pack them: without what examining finds."""
    out.mkdir()
    with tarfile.open(out / "0.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return out


@pytest.fixture(params=ERRORS, ids=lambda error: type(error).__name__)
def raises(request, monkeypatch):
    """Opening the marked video, or decoding its third frame, raises the error; returns the choice between the two."""
    opened, real = {"raise_at": 0}, av.open

    class Broken:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def decode(self, stream):
            for i, frame in enumerate(self.container.decode(stream)):
                if i == opened["raise_at"]:
                    raise request.param
                yield frame

    def broken_open(source, *arguments, **options):
        if isinstance(source, str):
            with open(source, "rb") as file:
                data = file.read()
        else:
            data = source.read()
            source.seek(0)
        container = real(source, *arguments, **options)
        if not data.endswith(MARK):
            return container
        if opened["raise_at"] == 0:
            container.close()
            raise request.param
        return Broken(container)

    monkeypatch.setattr(av, "open", broken_open)
    return opened


@pytest.mark.parametrize(("raise_at", "workers"), [(0, 0), (2, 1)])
def test_packing_goes_on_and_names_the_file(folder, raises, tmp_path, raise_at, workers):
    raises["raise_at"] = raise_at
    report = pack_folder(folder, tmp_path / "out", PackingSettings(workers=workers))
    assert report.videos == 7
    assert list(report.rejected) == ["3.mp4"]
    assert report.rejected["3.mp4"].startswith("3.mp4: ")


@pytest.mark.parametrize("raise_at", [0, 2])
def test_planning_goes_on_and_names_the_video(folder, raises, tmp_path, raise_at, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    raises["raise_at"] = raise_at
    data = DATA.model_copy(update={"held_out": 0.6})
    videos = VideoSet(foreign_shards(folder, tmp_path / "shards"), data, "?")
    assert len(videos.samples) == 7
    assert "1 left out" in videos.describe()
    assert "0.tar:3: " in videos.describe()


def test_training_validation_statistics_and_both_evaluations_go_on_and_name_the_video(shards, raises, capsys):
    videos = VideoSet(shards, DATA, "?")
    broken = next(one for one in videos.samples if one.read("mp4").endswith(MARK))
    raises["raise_at"] = 2
    for data in (DATA, DATA.model_copy(update={"fps": 4.0, "frames": 3})):
        loader = endless_loader(ClipDataset(videos.samples, data, seed=0), StepSampler(BatchPlan(4)))
        assert [next(loader)["video"].shape[0] for _ in range(4)] == [4] * 4
        assert f"left out: {broken.name}: " in capsys.readouterr().err
        found = [place for place, _ in each_clip(videos.samples, data, len(videos.samples))]
        assert found == [i for i, one in enumerate(videos.samples) if one != broken]
        assert f"left out: {broken.name}: " in capsys.readouterr().err
    clips = [(sample, 0) for sample in videos.samples]
    other = [clip for clip in clips if clip[0] != broken]
    assert decodable_clips(clips, DATA, Failures(len(clips), DATA.failures_allowed, "videos")) == other
    assert f"left out: {broken.name}: " in capsys.readouterr().err


@pytest.mark.parametrize("raises", [KeyError("rotate")], indirect=True)
def test_the_account_of_training_has_what_failed_later_too(folder, shards, raises, tmp_path):
    out = foreign_shards(folder, tmp_path / "shards")
    with tarfile.open(out / "1.tar", "w") as tar:
        for name in ("lonely.txt", "cut.mp4"):
            tar.add(__file__, name)
    write_video(tmp_path / "short.mp4", np.full((4, 32, 32, 3), 9, np.uint8), 8)
    with tarfile.open(out / "2.tar", "w") as tar:
        tar.add(tmp_path / "short.mp4", "short.mp4")
    raises["raise_at"] = 99  # beyond its frames: examining finds nothing wrong
    data = DATA.model_copy(update={"held_out": 0.6})
    videos = VideoSet(out, data, "?")
    raises["raise_at"] = 2
    loader = endless_loader(ClipDataset(videos.samples[:8], data, 0, videos.failed), StepSampler(BatchPlan(8)))
    next(loader)
    assert list(each_clip(videos.samples[3:4], data, 8, videos.failed)) == []
    account = videos.account()
    assert (account.found, account.used) == (11, 7)
    names = {reason: [name.rpartition("/")[2] for name in names] for reason, names in account.left_out.items()}
    assert names == {
        "holds no video": ["1.tar:lonely"],
        "cannot be decoded": ["1.tar:cut", "0.tar:3"],
        "shorter than a clip": ["2.tar:short"],
    }


def test_a_stream_goes_on_and_names_the_video(folder, shards, raises, tmp_path, capfd):
    foreign_shards(folder, tmp_path / "streamed")
    data = DATA.model_copy(update={"stream": str(tmp_path / "streamed/0.tar"), "held_out": 0.0, "stream_seconds": 30.0})
    raises["raise_at"] = 2
    loader = endless_loader(ClipDataset(VideoSet(shards, DATA, "?").train, data, seed=0), StepSampler(BatchPlan(4)))
    assert [next(loader)["video"].shape[0] for _ in range(4)] == [4] * 4
    loader.close()
    assert f"left out: {tmp_path}/streamed/0.tar:3: " in capfd.readouterr().err


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_image_that_raises_is_named(tmp_path, monkeypatch, error):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(InputError, match=r"^--image .*a\.png: (cannot be read as an image|needs more memory)"):
        read_first_frame(tmp_path / "a.png", 32, 32)
    with pytest.raises(InputError, match=r"none of the 1 files .*\n  a\.png: (cannot be read|needs more memory)"):
        pack_folder(tmp_path, tmp_path / "out", PackingSettings(workers=0))


CHANGES = {"cannot be read any more": os.unlink, "has changed": lambda path: path.write_bytes(b"x")}


@pytest.mark.parametrize("words", CHANGES)
def test_a_file_that_vanishes_or_changes_while_its_folder_is_packed_is_named(folder, tmp_path, monkeypatch, words):
    source, real = tmp_path / "source", writing.shard_writer
    source.mkdir()
    (source / "a.mp4").write_bytes((folder / "0.mp4").read_bytes())

    def writer(path):
        CHANGES[words](source / "a.mp4")
        return real(path)

    monkeypatch.setattr(writing, "shard_writer", writer)
    with pytest.raises(InputError, match=rf"a\.mp4 {words}.*run the command again"):
        pack_folder(source, tmp_path / "out", PackingSettings(workers=0))


def test_a_file_that_cannot_be_read_from_its_disk_costs_that_file(folder, tmp_path, monkeypatch):
    real = examining.file_fingerprint

    def fails(path):
        if path.name == "3.mp4":
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(examining, "file_fingerprint", fails)
    report = pack_folder(folder, tmp_path / "out", PackingSettings(workers=0))
    assert report.rejected == {"3.mp4": "3.mp4: cannot be read (Input/output error)"}
