"""KEY.json files of other tools are validated, and missing facts are found once and cached."""

import io
import json
import shutil
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm.encoding.shard_files import class_name
from odvae.clips.clip import frame_count, frame_size, load_clip
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.packing.packing import PackingSettings, pack_folder
from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.shards import facts as facts_module
from odvae.shards.facts import ExamineLimits, about_sample, checked_about, own_facts
from odvae.shards.facts_journal import FactsJournal
from odvae.shards.tars import index_shards, list_shards
from odvae.video.video_io import VideoFacts, write_video

DATA = DataSettings(frames=5, height=32, width=32, held_out=0.5, workers=0)


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def video(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (60, 32, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "source.mp4", frames, 8)
    return (tmp_path / "source.mp4").read_bytes()


def foreign_shards(folder, video, about=lambda i: None, count=6):
    """Shards as video2dataset writes them."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for i in range(count):
            add(tar, f"{i:07d}.mp4", video)
            add(tar, f"{i:07d}.txt", b"a square")
            if (json_bytes := about(i)) is not None:
                add(tar, f"{i:07d}.json", json_bytes)
    return folder


ODD = [
    b"[1, 2]",
    '{"caption": "Café"}'.encode("latin-1"),
    b'{"keyframes": null, "frames": "many", "label": "kept"}',
    b"",
    b"[" * 100_000,
    b'{"frames": -3, "seconds": NaN, "fps": Infinity, "height": true, "width": 1e99, "label": ["x"]}',
]


def test_a_json_of_any_kind_costs_no_video_and_what_is_ignored_is_counted(tmp_path, video):
    videos = VideoSet(foreign_shards(tmp_path / "shards", video, lambda i: ODD[i]), DATA, "?")
    assert len(videos.samples) == 6
    assert videos.left_out == []
    assert [about_sample(sample).get("label") for sample in videos.samples] == [None, None, "kept", None, None, None]
    ignored = videos.describe().partition("ignored in KEY.json files: ")[2]
    for what in ("a list, not an object (1)", "not UTF-8 (1)", "its keyframes (1)", "not JSON (2)", "its frames (2)"):
        assert what in ignored
    assert all(load_clip(sample, DATA, 50).shape == DATA.shape for sample in videos.samples)


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("frames", [0, -1, "9", 9.0, True, None, [9]]),
        ("height", ["x", 0]),
        ("fps", [-1, "8", True, None]),
        ("seconds", [[], {}, -0.1]),
        ("variable_rate", [1, "no"]),
        ("keyframes", [None, {}, [1], [[1]], [[1, 2, 3]], [["0", 0]], [[0, 0.5]]]),
        ("time_steps", [[[1]], [[0.1, 0]], "x", [[-1, 2]]]),
        ("transfer", ["PQ", 1, None, []]),
        ("sha256", [1, None]),
        ("label", [["a"], {}, True, 1.5]),
        ("caption", [1, ["a"]]),
        ("captions", ["a", {}]),
    ],
)
def test_each_entry_has_a_type(entry, wrong):
    right = {"frames": 9, "height": 8, "fps": 8, "seconds": 1.1, "variable_rate": False, "keyframes": [[0, 0], [9, -4]]}
    right |= {"time_steps": [[0.1, 8]], "transfer": "pq", "sha256": "ab", "label": 3, "caption": "x", "captions": ["x"]}
    assert checked_about(json.dumps(right).encode()) == (right, [])
    for value in wrong:
        about, ignored = checked_about(json.dumps({entry: value, "other": value}).encode())
        assert (about, ignored) == ({"other": value}, [f"its {entry}"])


def test_only_own_notes_are_believed(tmp_path, video):
    """A foreign .json that says 900 frames of a video of 60: the video is counted."""
    claim = json.dumps({"frames": 900, "seconds": 99.0, "height": 9, "width": 9, "fps": 1.0, "sha256": "0123"}).encode()
    videos = VideoSet(foreign_shards(tmp_path / "shards", video, lambda i: claim), DATA, "?")
    assert {frame_count(sample, None) for sample in videos.samples} == {60}
    assert {frame_size(sample) for sample in videos.samples} == {(32, 48)}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.mp4").write_bytes(video)
    pack_folder(tmp_path / "own", tmp_path / "packed", PackingSettings(workers=0))
    (own,) = index_shards(list_shards(tmp_path / "packed", "?"))
    known = own_facts(own.key, about_sample(own))
    assert (known.frames, known.height, known.width, known.transfer) == (60, 32, 48, "sdr")
    assert len(known.keyframes) > 0


def counted(monkeypatch):
    calls = []

    def counting(sample):
        calls.append(sample.key)
        return real(sample)

    real = facts_module.examine_sample
    monkeypatch.setattr(facts_module, "examine_sample", counting)
    return calls


@pytest.mark.parametrize("place", ["beside", "cache"])
def test_foreign_videos_are_examined_once_and_clips_are_the_same_after(tmp_path, video, monkeypatch, place):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = foreign_shards(tmp_path / "shards", video)
    if place == "cache":
        (folder / "index").write_text("in the way: nothing can be written there")
    calls = counted(monkeypatch)
    first = VideoSet(folder, DATA, "?")
    assert len(calls) == 6
    second = VideoSet(folder, DATA, "?")
    assert len(calls) == 6
    assert list(second.samples) == list(first.samples)
    assert second.samples[0].facts.keyframes[-1][0] > 0 or second.samples[0].facts.frames == 60
    assert (folder / "index.arrow").is_file() == (place == "beside")
    assert list(tmp_path.rglob("*.jsonl")) == []  # the journal is not needed any more
    clip = load_clip(second.samples[0], DATA, 50)
    assert (clip == load_clip(index_shards(list_shards(folder, "?"))[0], DATA, 50)).all()


def journal_of(folder, samples):
    """The journal of a start that was stopped after it had examined these samples."""
    journal = FactsJournal(folder / "00000.tar", ExamineLimits(0, 60, 4))
    for one in samples:
        journal.remember(one, one.facts)
    return journal.paths[0]


def without_index(folder):
    (folder / "index.arrow").unlink()
    shutil.rmtree(folder / "index")
    return folder


def test_what_a_stopped_start_has_found_is_kept_and_a_spoiled_journal_is_passed_over(tmp_path, video, monkeypatch):
    folder = foreign_shards(tmp_path / "shards", video)
    calls = counted(monkeypatch)
    samples = list(VideoSet(folder, DATA, "?").samples)
    path = journal_of(without_index(folder), samples)
    lines = path.read_text().splitlines()
    spoiled = [lines[0], "{", "[]", "null", lines[1][:40], lines[2].replace('"frames": 60', '"frames": 61')]
    path.write_bytes("\n".join(spoiled).encode() + b"\n\xff\xfe" + lines[3][:30].encode())
    again = VideoSet(folder, DATA, "?")
    assert len(calls) == 6 + 5  # one line was whole
    assert list(again.samples) == samples
    assert len(VideoSet(folder, DATA, "?").samples) == 6
    assert len(calls) == 6 + 5


def test_a_start_that_was_stopped_goes_on_where_it_was(tmp_path, video, monkeypatch):
    folder = foreign_shards(tmp_path / "shards", video)
    calls = counted(monkeypatch)
    counting, stops_at = facts_module.examine_sample, 4

    def stopping(sample):
        if len(calls) == stops_at:
            raise KeyboardInterrupt
        return counting(sample)

    monkeypatch.setattr(facts_module, "examine_sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        VideoSet(folder, DATA, "?")
    assert len((folder / "index/00000.tar.facts.jsonl").read_text().splitlines()) == 4
    stops_at = None
    assert len(VideoSet(folder, DATA, "?").samples) == 6
    assert len(calls) == 6


def test_failures_are_kept_as_long_as_they_hold(tmp_path, video):
    (sample, *_) = index_shards(list_shards(foreign_shards(tmp_path / "shards", video), "?"))
    limits, more = ExamineLimits(0, 5.0, 1.0), ExamineLimits(0, 50.0, 1.0)
    for failure, kept in (
        (Failure(f"{sample.name}: cannot be decoded"), [True, True]),
        (Failure("took longer than 5 s", "limit"), [True, False]),
        (Failure("its process was killed", "system"), [False, False]),
    ):
        FactsJournal(sample.shard, limits).remove()
        FactsJournal(sample.shard, limits).remember(sample, failure)
        found = [FactsJournal(sample.shard, one).recall(sample) for one in (limits, more)]
        assert [isinstance(one, Failure) for one in found] == kept
        assert all(one.reason.startswith(sample.name) for one in found if one)


def test_a_broken_foreign_video_is_left_out_by_name_and_its_neighbours_are_used(tmp_path, video):
    folder = foreign_shards(tmp_path / "shards", video)
    with tarfile.open(folder / "00001.tar", "w") as tar:
        add(tar, "broken.mp4", video[:200])
        add(tar, "song.txt", b"no video")
    for _ in range(2):
        videos = VideoSet(folder, DATA, "?")
        assert len(videos.samples) == 6
        assert sum("00001.tar:broken: cannot be decoded" in line for line in videos.left_out) == 1
        assert any("song has no video, only txt" in line for line in videos.left_out)


def test_foreign_images_are_known_by_their_headers(tmp_path, video):
    folder = foreign_shards(tmp_path / "shards", video)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    with tarfile.open(folder / "00001.tar", "w") as tar:
        add(tar, "picture.png", buffer.getvalue())
    videos = VideoSet(folder, DATA, "?")
    (picture,) = [sample for sample in videos.samples if sample.key == "picture"]
    assert frame_size(picture) == (30, 40)
    assert frame_count(picture, 4.0) == 1


def test_high_dynamic_range_is_counted_and_left_out_where_asked(tmp_path, video, monkeypatch):
    folder = foreign_shards(tmp_path / "shards", video)
    samples = list(VideoSet(folder, DATA, "?").samples)
    for i, transfer in enumerate(("pq", "hlg")):
        samples[i] = replace(samples[i], facts=replace(samples[i].facts, transfer=transfer))
    journal_of(without_index(folder), samples)
    kept = VideoSet(folder, DATA, "?")
    assert "; high dynamic range, tone-mapped (data.hdr): PQ (HDR10) (1), HLG (1)" in kept.describe()
    assert len(kept.samples) == 6
    without = VideoSet(folder, DATA.model_copy(update={"hdr": "leave_out"}), "?")
    assert len(without.samples) == 4
    assert any("high dynamic range, PQ" in line for line in without.left_out)


def test_a_sample_without_a_video_says_so_once_it_is_asked(tmp_path, video):
    folder = foreign_shards(tmp_path / "shards", video)
    begin = time.monotonic()
    with pytest.raises(InputError, match="both splits need one"):
        VideoSet(folder, DATA.model_copy(update={"frames": 99}), "?")
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": 10**400},
        {"seconds": 1e308},
        {"frames": 2**62},
        {"frames": 4},
        {"seconds": 0.0},
        {"fps": float("inf")},
        {"keyframes": [[2**70, 0]]},
        {"time_steps": [[0.1, 10**9]]},
        {"time_steps": [[0.1, 3]]},
    ],
)
def test_numbers_that_no_video_has_are_not_believed(changes):
    about = {"sha256": "0123", "frames": 3, "height": 8, "width": 8, "fps": 10.0, "seconds": 0.3}
    about |= {"variable_rate": False, "keyframes": [[0, 0]], "time_steps": [[0.1, 2]]}
    good, _ = checked_about(json.dumps(about).encode())
    assert own_facts("0123", good) == VideoFacts(3, 8, 8, 10.0, 0.3, False, [(0, 0)], "sdr", [(0.1, 2)])
    broken, wrong = checked_about(json.dumps(about | changes).encode())
    assert wrong == [f"its {name}" for name in changes] or own_facts("0123", broken) is None


def test_a_class_is_read_from_whatever_stands_in_a_foreign_json(tmp_path, video):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for key, about in enumerate((b'{"label": 3}', b"[]", b"\xff", b"{", b'{"label": ["a"]}')):
            add(tar, f"{key}.mp4", video)
            add(tar, f"{key}.json", about)
    assert [class_name(sample) for sample in index_shards([tmp_path / "x.tar"])] == ["3", None, None, None, None]
