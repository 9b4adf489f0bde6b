"""Packing of a folder: layout, captions, filters, scenes, what is skipped, and what is resumed."""

import json
import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from scripts import fail, succeed

from odvae.clips.clip import load_clip
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import is_held_out
from odvae.packing import examining, writing
from odvae.packing.packing import pack_folder
from odvae.packing.report import describe
from odvae.packing.scenes import find_scenes
from odvae.packing.settings import PackingSettings
from odvae.packing.state import PackingState
from odvae.running.errors import InputError
from odvae.running.folder_lock import sole_writer
from odvae.shards.tars import index_shards, list_shards, shard_writer
from odvae.shards.unfinished import is_unfinished
from odvae.video.video_io import decode, examine, write_video


def test_every_readable_video_is_packed_and_every_other_is_named(source, tmp_path):
    report = pack_folder(source, tmp_path / "out", PackingSettings(samples_per_shard=2, workers=2))
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
    assert texts == {"a.mp4": "from, the table", "sub/a.mp4": "deep", "b.mp4": "square 1"}  # it has no row
    assert (report.without_caption, report.captioned_share) == (0, 1.0)
    assert set(report.account["left_out"]["captions that are not used"]["names"]) == {"a.txt", "sub/a.txt"}


def test_a_caption_table_without_the_right_columns_is_an_error(source, tmp_path):
    (source / "captions.csv").write_text("name,words\na.mp4,x\n")
    with pytest.raises(InputError, match=r"captions\.csv, line 2: needs a file column .* found name, words"):
        pack_folder(source, tmp_path / "out")


def test_packing_what_is_packed_already_gives_the_same_report_at_once(source, tmp_path):
    report = pack_folder(source, tmp_path / "out")
    before = (tmp_path / "out/00000.tar").stat().st_mtime_ns
    assert pack_folder(source, tmp_path / "out") == report
    assert (tmp_path / "out/00000.tar").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="not empty and was not packed from this input"):
        pack_folder(source, tmp_path / "out", PackingSettings(min_frames=3))


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


@pytest.mark.slow
def test_the_tool_prints_counts_rejects_and_the_next_command(source, tmp_path):
    command = ["tools/make_shards.py", str(source), str(tmp_path / "out")]
    printed = succeed(*command)
    assert "3 videos (27 frames, 3 s) in 1 shards" in printed
    assert "left out: 4" in printed
    assert "song.mp4" in printed
    assert "next: accelerate launch pipelines/train_vae.py" in printed
    assert "min_frame: unknown key; did you mean min_frames?" in fail(*command, "min_frame=3")


def test_the_reports_counts_name_sizes_rates_and_durations(source, tmp_path):
    report = pack_folder(source, tmp_path / "out")
    assert (report.sizes, report.rates, report.seconds) == ({"32x32": 3}, {"8": 3}, 3.375)
    assert "sizes                       32x32 (3)" in describe(report, tmp_path / "out")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"min_frames": 10}, "9 frames, min_frames is 10"),
        ({"max_seconds": 1.0}, "1.125 seconds, max_seconds is 1.0"),
        ({"min_side": 33}, "32 pixels on its shorter side, min_side is 33"),
        ({"min_fps": 9.0}, "8.0 frames per second, min_fps is 9.0"),
        ({"max_aspect": 0.9}, "1.0 aspect ratio, max_aspect is 0.9"),
    ],
)
def test_filters_leave_out_what_does_not_pass_and_say_which(source, tmp_path, setting, reason):
    write_video(source / "good.mp4", np.full((12, 40, 34, 3), 99, np.uint8), 12)
    report = pack_folder(source, tmp_path / "out", PackingSettings(workers=0, **setting))
    assert report.rejected["a.mp4"] == f"a.mp4: {reason}"
    assert report.videos == 1


def test_images_are_packed_as_clips_of_one_frame_in_shards_of_their_own(source, tmp_path):
    Image.new("RGB", (40, 30), (9, 8, 7)).save(source / "z.png")
    (source / "z.txt").write_text("a dark plate")
    (source / "broken.png").write_bytes(b"no image")
    report = pack_folder(source, tmp_path / "out")
    assert (report.videos, report.images, report.shards) == (3, 1, 2)
    assert "cannot be read as an image" in report.rejected["broken.png"]
    (image,) = index_shards([tmp_path / "out/png-00000.tar"])
    assert image.read_text() == "a dark plate"
    data = DataSettings(frames=1, height=24, width=32, workers=0)
    assert load_clip(image, data).shape == (1, 24, 32, 3)
    assert load_clip(image, data)[0, 5, 5].tolist() == [9, 8, 7]


def test_classes_come_from_the_table_or_from_folder_names(source, tmp_path):
    report = pack_folder(source, tmp_path / "folders", PackingSettings(labels="folders", workers=0))
    assert report.classes == {"sub": 1}
    (source / "metadata.jsonl").write_text('{"file_name": "b.mp4", "label": 7}\n')
    report = pack_folder(source, tmp_path / "table", PackingSettings(workers=0))
    assert report.classes == {"7": 1}


def test_a_packing_that_was_stopped_goes_on_and_ends_in_the_same_bytes(source, tmp_path, monkeypatch):
    settings = PackingSettings(samples_per_shard=1, workers=0)
    pack_folder(source, tmp_path / "whole", settings)
    written, examined = [], []

    def failing_writer(path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return shard_writer(path)

    monkeypatch.setattr(writing, "shard_writer", failing_writer)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(source, tmp_path / "out", settings)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["00000.tar", "00001.tar"]
    assert is_unfinished(tmp_path / "out")
    monkeypatch.setattr(writing, "shard_writer", lambda path: written.append(path.name) or shard_writer(path))
    monkeypatch.setattr(examining, "examine", lambda path, name: examined.append(name) or examine(path, name))
    report = pack_folder(source, tmp_path / "out", settings)
    assert written == ["00000.tar", "00001.tar", "00002.tar"]  # each once
    assert "a.mp4" not in examined
    assert report.videos == 3
    for path in (tmp_path / "whole").glob("*.tar"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_second_writer_of_a_folder_is_refused(source, tmp_path):
    with (
        sole_writer(PackingState(tmp_path / "out", None).folder),
        pytest.raises(InputError, match="being written by another process"),
    ):
        pack_folder(source, tmp_path / "out")


def test_scenes_become_samples_of_one_split(source, tmp_path):
    pytest.importorskip("scenedetect", reason="needs PySceneDetect")
    halves = [np.full((40, 64, 64, 3), gray, np.uint8) for gray in (30, 200)]
    (tmp_path / "cut").mkdir()
    write_video(tmp_path / "cut/x.mp4", np.concatenate(halves), 20)
    report = pack_folder(tmp_path / "cut", tmp_path / "out", PackingSettings(cut_scenes=True, workers=1))
    assert (report.videos, report.frames) == (2, 80)
    scenes = index_shards([tmp_path / "out/00000.tar"])
    assert [scene.key[-4:] for scene in scenes] == ["+000", "+001"]
    assert len({is_held_out(scene.key, "", 0.5) for scene in scenes}) == 1
    for scene, half in zip(scenes, halves, strict=True):
        frames = np.stack(list(decode(scene.open("mp4"), scene.name)))
        assert len(frames) == scene.read_json()["frames"] == 40
        assert np.abs(frames.astype(int) - half).mean() < 3


def test_scenes_are_numbered_as_frames_are_decoded_also_where_the_rate_varies_and_a_cover_comes_first(tmp_path):
    pytest.importorskip("scenedetect", reason="needs PySceneDetect")
    with av.open(str(tmp_path / "x.mkv"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 320, 320, "yuvj420p"
        video = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 50, 32, "bgr0"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((320, 320, 3), np.uint8), "rgb24")))
        container.mux(cover.encode(None))
        for i, gray in enumerate([30] * 40 + [200] * 40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 50, 3), gray, np.uint8), "rgb24")
            frame.pts, frame.time_base = 40 * i + 2000 * (i > 20), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    assert find_scenes(tmp_path / "x.mkv", "x.mkv", examine(tmp_path / "x.mkv", "x.mkv").fps) == [(0, 40), (40, 80)]
