"""Packing and reading shards: layout, captions, what is skipped, and files that are not what they should be."""

import json
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import REPOSITORY

from odvae.shared.errors import InputError
from odvae.shared.packing import pack_folder
from odvae.shared.shards import index_shards, list_shards
from odvae.shared.video import VideoError, decode, examine, read_frames, write_video


def moving_square(frames=9, seed=0):
    video = np.full((frames, 32, 32, 3), 40, np.uint8)
    for i in range(frames):
        video[i, 8:20, i : i + 10] = (200, 20 + 10 * seed, 30)
    return video


@pytest.fixture
def source(tmp_path):
    """Three good videos, one in a sub-folder with the same name as another, and four files that are no videos."""
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(["a.mp4", "b.mp4", "sub/a.mp4"]):
        write_video(folder / name, moving_square(9, seed), 8)
        (folder / name).with_suffix(".txt").write_text(f"square {seed}\n")
    whole = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "song.mp4").write_bytes(b"ID3\x03" + bytes(range(256)) * 20)
    shutil.copy(folder / "b.mp4", folder / "copy_of_b.mp4")
    return folder


def test_every_readable_video_is_packed_and_every_other_is_named(source, tmp_path):
    report = pack_folder(source, tmp_path / "out", samples_per_shard=2)
    assert (report.videos, report.shards, report.frames) == (3, 2, 27)
    assert set(report.rejected) == {"cut.mp4", "empty.mp4", "song.mp4", "copy_of_b.mp4"}
    assert "0 bytes" in report.rejected["empty.mp4"]
    assert "same bytes as b.mp4" in report.rejected["copy_of_b.mp4"]
    assert json.loads((tmp_path / "out/packing.json").read_text())["rejected"] == report.rejected


def test_shards_have_video2datasets_layout_and_the_files_own_bytes(source, tmp_path):
    pack_folder(source, tmp_path / "out")
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        names = tar.getnames()
    samples = index_shards(list_shards(tmp_path / "out", "?"))
    assert sorted(names) == sorted(f"{sample.key}.{ext}" for sample in samples for ext in ("mp4", "txt", "json"))
    by_source = {sample.read_json()["source"]: sample for sample in samples}
    assert by_source["sub/a.mp4"].read("mp4") == (source / "sub/a.mp4").read_bytes()
    assert by_source["sub/a.mp4"].read_text() == "square 2"
    about = by_source["a.mp4"].read_json()
    assert (about["frames"], about["height"], about["width"], about["fps"]) == (9, 32, 32, 8.0)


def test_the_same_input_gives_the_same_bytes(source, tmp_path):
    for out in ("one", "two"):
        pack_folder(source, tmp_path / out)
    assert (tmp_path / "one/00000.tar").read_bytes() == (tmp_path / "two/00000.tar").read_bytes()


@pytest.mark.parametrize("table", ["metadata.jsonl", "captions.csv"])
def test_captions_come_from_a_table_where_there_is_one(source, tmp_path, table):
    if table == "captions.csv":
        (source / table).write_text('path,text\na.mp4,"from, the table"\nsub/a.mp4,deep\n')
    else:
        rows = [{"file_name": "a.mp4", "text": "from, the table"}, {"file_name": "sub/a.mp4", "text": "deep"}]
        (source / table).write_text("\n".join(map(json.dumps, rows)))
    report = pack_folder(source, tmp_path / "out")
    texts = {s.read_json()["source"]: s.read_text() for s in index_shards(list_shards(tmp_path / "out", "?"))}
    assert texts == {"a.mp4": "from, the table", "sub/a.mp4": "deep", "b.mp4": ""}
    assert report.without_caption == 1


def test_a_caption_table_without_the_right_columns_is_an_error(source, tmp_path):
    (source / "captions.csv").write_text("name,words\na.mp4,x\n")
    with pytest.raises(InputError, match=r"captions\.csv, row 1: needs a file column .* found name, words"):
        pack_folder(source, tmp_path / "out")


def test_missing_empty_and_used_folders_are_errors(tmp_path, source):
    with pytest.raises(InputError, match="does not exist"):
        pack_folder(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(InputError, match="holds no video"):
        pack_folder(tmp_path / "hollow", tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/precious.txt").write_text("keep me")
    with pytest.raises(InputError, match="not empty"):
        pack_folder(source, tmp_path / "used")
    assert (tmp_path / "used/precious.txt").read_text() == "keep me"


def test_a_folder_of_only_broken_files_is_an_error_that_names_them_and_leaves_nothing(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match=r"none of the 1 files.*\n.*x\.mp4"):
        pack_folder(tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tool_prints_counts_rejects_and_the_next_command(source, tmp_path):
    command = [sys.executable, "tools/make_shards.py", str(source), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "3 videos (27 frames" in result.stdout
    assert "skipped: 4" in result.stdout
    assert "song.mp4" in result.stdout
    assert "next: accelerate launch pipelines/train_vae.py" in result.stdout
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("error: output folder")


def test_a_shard_that_was_cut_is_named(source, tmp_path):
    pack_folder(source, tmp_path / "out")
    shard = tmp_path / "out/00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"00000\.tar"):
        index_shards([shard])


def test_the_same_key_in_two_shards_is_an_error(source, tmp_path):
    pack_folder(source, tmp_path / "out")
    shutil.copy(tmp_path / "out/00000.tar", tmp_path / "out/00001.tar")
    with pytest.raises(InputError, match=r"is in .*00000\.tar and in .*00001\.tar"):
        index_shards(list_shards(tmp_path / "out", "?"))


def test_a_written_video_reads_back_nearly_the_same(tmp_path):
    frames = moving_square()
    write_video(tmp_path / "x.mp4", frames, 8)
    again = np.stack(list(decode(tmp_path / "x.mp4", "x.mp4")))
    assert again.shape == frames.shape
    assert np.abs(again.astype(int) - frames).mean() < 6  # chroma has half the resolution
    assert examine(tmp_path / "x.mp4", "x").fps == 8.0


def test_frames_are_taken_by_start_and_stride_and_a_short_video_is_named(tmp_path):
    write_video(tmp_path / "x.mp4", moving_square(9), 8)
    every = np.stack(list(decode(tmp_path / "x.mp4", "x")))
    assert np.array_equal(np.stack(list(read_frames(tmp_path / "x.mp4", "x", 1, 3, 2))), every[[1, 3, 5]])
    with pytest.raises(VideoError, match=r"my clip: ends before frame 9"):
        list(read_frames(tmp_path / "x.mp4", "my clip", 5, 5))


def test_odd_sizes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="even sizes, found 31x32"):
        write_video(tmp_path / "x.mp4", np.zeros((3, 32, 31, 3), np.uint8), 8)
    assert list(tmp_path.iterdir()) == []


def test_awkward_real_files_are_read_or_named(shared):
    """Rotated, 10-bit, odd-sized, truncated, empty and false files: as the reference list says of each."""
    reasons = {}
    for path in sorted((shared / "edge_videos").iterdir()):
        if path.suffix in (".mp4", ".mov", ".mkv", ".webm", ".gif"):
            try:
                assert examine(path, path.name).frames > 0
            except VideoError as error:
                reasons[path.name] = str(error)
    assert all(name in reason for name, reason in reasons.items())
    assert {"made_empty.mp4", "made_text.mp4"} <= reasons.keys()
    assert len(reasons) <= 6
