"""Video sets on an index: columns choose the same videos as their facts, and shards that change under them."""

import shutil

import numpy as np
import pytest
from small_ldm import DATA

from odvae.clips.clip import frames_at_rate
from odvae.clips.dataset import ClipDataset
from odvae.clips.loader import endless_loader
from odvae.clips.samplers import BatchPlan, StepSampler
from odvae.clips.video_set import VideoSet, is_held_out
from odvae.index.merging import merge_indexes
from odvae.index.rows import IndexedShard, IndexRow, write_shard_index
from odvae.running.account import HIGH_RANGE, NO_VIDEO, UNREADABLE
from odvae.running.errors import InputError
from odvae.shards.samples import Member, split_position
from odvae.shards.tars import shard_writer
from odvae.video.video_io import VideoFacts


def synthetic(folder, rows):
    """A folder whose index has these rows; its shard has no videos."""
    folder.mkdir()
    with shard_writer(folder / "0.tar"):
        pass
    state = (folder / "0.tar").stat()
    shard = IndexedShard("0.tar", state.st_size, state.st_mtime_ns, len(rows))
    write_shard_index(folder / "index/0.tar.arrow", shard, rows, "", [])
    merge_indexes(folder / "index.arrow", [folder / "index/0.tar.arrow"])
    return folder


def random_row(key, rng):
    if rng.random() < 0.1:
        members = {"txt": Member(0, 0, 0)} if rng.random() < 0.5 else {"mp4": Member(0, 0, 0)}
        return IndexRow(key, members, split_position(key, ""), problem=": cannot be decoded", captions=1)
    if rng.random() < 0.1:
        return IndexRow(
            key, {"png": Member(0, 0, 0)}, split_position(key, ""), VideoFacts(1, 8, 8, 0.0, 0.0, False, [])
        )
    frames, fps = int(rng.integers(1, 40)), float(rng.choice([7.0, 8.0, 24.0, 30000 / 1001]))
    transfer = str(rng.choice(["sdr", "sdr", "pq", "hlg"]))
    facts = VideoFacts(frames, 8, 8, fps, frames / fps, False, [(0, 0)], transfer)
    return IndexRow(key, {"mp4": Member(0, 0, 0)}, split_position(key, ""), facts)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"held_out": 0.0001}, "Raise data.held_out"),
        ({"held_out": 0.9999}, "Lower data.held_out"),
        ({"frames": 97}, "Lower data.frames or data.stride"),
    ],
)
def test_an_empty_split_is_an_error_that_says_what_to_do(tmp_path, settings, remedy):
    rows = [random_row(f"{i:05d}", np.random.default_rng(i)) for i in range(9)]
    with pytest.raises(InputError, match=rf"both splits need one.* {remedy}"):
        VideoSet(synthetic(tmp_path / "s", rows), DATA.model_copy(update=settings), "?")


@pytest.mark.parametrize("fps", [None, 8.0, 5.3])
@pytest.mark.parametrize("hdr", ["tone_map", "leave_out"])
def test_columns_choose_what_the_facts_of_each_video_say(tmp_path, fps, hdr):
    rng = np.random.default_rng(0)
    rows = [random_row(f"{i:05d}", rng) for i in range(400)]
    data = DATA.model_copy(update={"fps": fps, "hdr": hdr, "held_out": 0.3})
    videos = VideoSet(synthetic(tmp_path / "s", rows), data, "?")
    usable = [one for one in rows if one.facts and (hdr == "tone_map" or one.facts.transfer == "sdr")]
    long = [one.key for one in usable if frames_at_rate(one.facts, fps) >= data.span]
    assert [one.key for one in videos.samples] == [one.key for one in usable]
    assert [one.key for one in videos.train] == [key for key in long if not is_held_out(key, "", 0.3)]
    assert [one.key for one in videos.held_out] == [key for key in long if is_held_out(key, "", 0.3)]
    assert [one.key for one in videos.not_held_out] == [one.key for one in usable if not is_held_out(one.key, "", 0.3)]
    account = videos.account()
    assert account.found == 400
    assert account.used == len(long)
    assert videos.count_left_out == len(videos.left_out) == 400 - len(long)
    reasons = {reason for _, reason, _ in videos.unusable()}
    assert reasons == {UNREADABLE, NO_VIDEO} | ({HIGH_RANGE} if hdr == "leave_out" else set())
    assert f"; {400 - len(long)} left out, unusable or shorter" in videos.describe()
    assert not videos.has_training_captions


def test_a_shard_that_is_replaced_while_training_costs_its_changed_videos(ldm_run, tmp_path, capsys):
    """Each is named, counted and replaced by another one, as a broken video is."""
    folder = shutil.copytree(ldm_run / "shards", tmp_path / "shards")
    data = DATA.model_copy(update={"workers": 0, "failures_allowed": 0.5})
    videos = VideoSet(folder, data, "?")
    changed = videos.train[0]
    with open(folder / "00000.tar", "r+b") as file:
        file.seek(changed.members["mp4"].offset + 40)
        file.write(b"not what was indexed")
    loader = endless_loader(
        ClipDataset(videos.train, data, 0, videos.failed), StepSampler(BatchPlan(len(videos.train)))
    )
    assert next(loader)["video"].shape[0] == len(videos.train)
    assert list(videos.failed) == [changed.name]
    assert "the shard was changed or damaged after it was indexed" in videos.failed[changed.name]
    assert f"left out: {changed.name}.mp4: its checksum is" in capsys.readouterr().err
    assert videos.account().left_out[UNREADABLE].keys() == {changed.name}
