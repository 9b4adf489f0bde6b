"""A newcomer's folder: what can be used is packed, and every odd file is explained, in the report and on the screen."""

import json
import os
import shutil
import socket
import unicodedata

import numpy as np
import pytest
from PIL import Image

from odvae.packing import examining, writing
from odvae.packing.packing import PackingSettings, pack_folder
from odvae.packing.report import describe
from odvae.running.errors import InputError
from odvae.shards.tars import index_shards, list_shards
from odvae.video.video_io import write_video

GOOD = {
    "holiday.mp4": "a red square on a beach",
    "sub folder/b 👨‍👩‍👧.mp4": "b",
    "שלום.mp4": "",
    "line\nbreak.mp4": "",
    os.fsdecode(b"caf\xe9.mp4"): "coffee",
    unicodedata.normalize("NFD", "Über.mp4"): "above, all",
    "linked/c.mp4": "from the table",
    "d.TS": "",
}


def clip(path, seed):
    video = np.full((9, 32, 32, 3), 40, np.uint8)
    video[:, 8:20, seed : seed + 10] = (200, 20 + 10 * seed, 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path.parent / "written.mp4", video, 8)
    os.rename(path.parent / "written.mp4", path)


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A folder with eight good videos, an image, and thirty odd things: name -> a part of what is said of each."""
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for seed, name in enumerate(GOOD):
        clip(elsewhere / name.removeprefix("linked/") if name.startswith("linked/") else source / name, seed)
    (source / "linked").symlink_to(elsewhere)
    (source / "holiday.txt").write_text("a red square on a beach", encoding="utf-8-sig")
    (source / os.fsdecode(b"caf\xe9.caption")).write_text("coffee")
    table = 'File Name, Caption\nÜber.mp4, "above, all"\nlinked\\c.mp4, from the table\nb 👨‍👩‍👧.mp4, b\ngone.mp4, x\n'
    (source / "metadata.csv").write_text(table)
    whole = (source / "holiday.mp4").read_bytes()
    Image.new("RGB", (16, 16)).save(source / "photo.png")
    said = {
        "cut.mp4": (whole[:400], "cannot be decoded"),
        "empty.mp4": (b"", "0 bytes"),
        "text.mp4": (b"<html>404</html>", "it is a web page (HTML), as from a failed download"),
        "noise.avi": (bytes(range(256)) * 8, "cannot be decoded"),
        "pointer.mp4": (
            b"version https://git-lfs.github.com/spec/v1\noid 0",
            "it is a Git LFS pointer",
        ),
        "broken.png": (b"\x89PNG\r\n\x1a\n...", "cannot be read as an image"),
        "z copy.mov": (whole, "same bytes as holiday.mp4"),
        "._holiday.mp4": (b"\0\5\x16\7", "macOS AppleDouble file"),
        os.fsdecode(b"\xff.webm"): (b"no", "cannot be decoded"),
        "movie.swf": (b"FWS", "a .swf file, which is not supported: convert it"),
        "movie.rmvb": (b".RMF", "a .rmvb file, which is not supported"),
        "half.mp4.part": (whole[:100], "a .part file, which is not supported"),
        "all.zip": (b"PK", "a .zip file, which is not supported: unpack it"),
        "sound.mp3": (b"ID3", "a .mp3 file, which is not supported: it is audio"),
        "titles.srt": (b"1", "a .srt file, which is not supported"),
        ".DS_Store": (b"\0", "without extension, which is not supported"),
        "Thumbs.db": (b"\0", "a .db file, which is not supported"),
        "README.md": (b"# my videos", "a .md file, which is not supported"),
        os.fsdecode(b"\xfe.doc"): (b"", "a .doc file, which is not supported"),
        "lonely.txt": (b"of a video that is gone", "no video of the same name"),
        "scores.csv": (b"video,score\nholiday.mp4,5\n", "needs a file column"),
        "others.csv": (b"video,caption\nz.mp4,5\n", "has 1 row, none of a file here"),
        "config.json": (b'{"fps": 8}', "has no rows"),
        "broken.json": (b"{", "not needed: broken.png is left out"),
        "other.json": (b"{", "is not valid JSON"),
        "holiday.json": (b'{"caption": "another"}', "not needed: its videos have captions from other files"),
        "latin.mp4": (shutil, "its caption latin.txt is not UTF-8"),
        "latin.txt": ("près".encode("latin-1"), "cannot be read: latin.mp4 is left out"),
    }
    for name, (content, _) in said.items():
        if content is shutil:
            clip(source / name, 12)
        else:
            (source / name).write_bytes(content)
    (source / "gone.mp4").symlink_to("nowhere.mp4")
    (source / "folder.mp4").mkdir()
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "pipe.mp4")
    monkeypatch.chdir(source)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp4")
    expected = {name: part for name, (_, part) in said.items()}
    expected |= {"gone.mp4": "a broken link", "folder.mp4": "is a folder", "pipe.mp4": "is a pipe"}
    expected |= {"socket.mp4": "is a socket", "loop": "is a link to a folder that is here already: the source folder"}
    return source, expected


def shown(name):
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\n", "\\n")


def test_a_newcomers_folder_packs_and_each_odd_file_is_explained(odd, tmp_path):
    source, expected = odd
    report = pack_folder(source, tmp_path / "out", PackingSettings(workers=2))
    samples = [sample.read_json() for sample in index_shards(list_shards(tmp_path / "out", "?"))]
    found = {about["source"]: about["caption"] for about in samples}
    assert found == {shown(name).replace("\\n", "\n"): caption for name, caption in GOOD.items()} | {"photo.png": ""}
    assert len(expected) >= 30
    assert report.rejected.keys() == {shown(name) for name in expected}
    for name, part in expected.items():
        assert part in report.rejected[shown(name)]
    text = describe(report, tmp_path / "out")
    assert all(line in text for line in report.rejected.values())
    assert "files found" in text
    assert "table rows without a video  1" in text
    account = json.loads((tmp_path / "out/packing.json").read_text())["account"]
    assert (account["found"], account["used"]) == (len(GOOD) + 1 + len(expected), len(GOOD) + 1)
    assert sum(group["count"] for group in account["left_out"].values()) == len(expected)
    assert account["without_caption"] == report.without_caption == 4
    assert report.tables[0]["rows_without_video"] == {"count": 1, "names": {"line 5": "gone.mp4"}}
    assert describe(pack_folder(source, tmp_path / "out", PackingSettings(workers=2)), tmp_path / "out") == text


def test_packing_goes_on_after_a_stop_among_odd_names(odd, tmp_path, monkeypatch):
    source, _ = odd
    settings = PackingSettings(samples_per_shard=2, workers=0)
    pack_folder(source, tmp_path / "whole", settings)
    real = writing.shard_writer

    def stop_at_second(path):
        if path.name == "00001.tar":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(writing, "shard_writer", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(source, tmp_path / "out", settings)
    monkeypatch.setattr(writing, "shard_writer", real)
    pack_folder(source, tmp_path / "out", settings)
    for path in (tmp_path / "whole").glob("*.tar"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_an_output_inside_the_source_is_no_input(odd):
    source, _ = odd
    report = pack_folder(source, source / "shards", PackingSettings(workers=0))
    assert pack_folder(source, source / "shards", PackingSettings(workers=0)) == report
    assert not any("shards" in name for name in report.rejected)


def test_several_captions_are_kept_in_the_sample_and_one_is_its_text(tmp_path):
    clip(tmp_path / "source/a.mp4", 1)
    rows = [{"path": "a.mp4", "cap": ["one", "two", "three"]}]
    (tmp_path / "source/t.json").write_text(json.dumps(rows))
    report = pack_folder(tmp_path / "source", tmp_path / "out", PackingSettings(workers=0))
    (sample,) = index_shards(list_shards(tmp_path / "out", "?"))
    assert (sample.read_text(), sample.read_json()["captions"]) == ("one", ["one", "two", "three"])
    assert report.several_captions == 1
    assert "with a caption              100.0%; 1 have several" in describe(report, tmp_path / "out")


def test_a_caption_of_a_copy_alone_is_not_lost_unsaid(tmp_path):
    clip(tmp_path / "source/a.mp4", 1)
    shutil.copy(tmp_path / "source/a.mp4", tmp_path / "source/b.mp4")
    (tmp_path / "source/b.txt").write_text("a red square")
    report = pack_folder(tmp_path / "source", tmp_path / "out", PackingSettings(workers=0))
    assert "same bytes as a.mp4, which has no caption: remove a.mp4" in report.rejected["b.mp4"]


def test_image_files_of_several_pictures_are_counted_and_named(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    pictures = [Image.new("RGB", (16, 16), (color, 0, 0)) for color in (250, 10, 120)]
    for name in ("a.webp", "b.tif", "photo.jpg"):
        kind = {"a.webp": "WEBP", "b.tif": "TIFF", "photo.jpg": "MPO"}[name]
        pictures[0].save(source / name, kind, save_all=True, append_images=pictures[1:])
    pictures[0].save(source / "one.png")
    text = describe(pack_folder(source, tmp_path / "out", PackingSettings(workers=0)), tmp_path / "out")
    assert "2 image files have several frames or pages" in text
    assert "convert animations to mp4: a.webp (3), b.tif (3)\n" in text


def test_no_caption_at_all_is_said(tmp_path):
    clip(tmp_path / "source/a.mp4", 1)
    report = pack_folder(tmp_path / "source", tmp_path / "out", PackingSettings(workers=0))
    assert report.captioned_share == 0
    assert "note: no video has a caption" in describe(report, tmp_path / "out")


def test_a_broken_table_is_an_error_before_anything_is_decoded(tmp_path, monkeypatch):
    clip(tmp_path / "source/a.mp4", 1)
    (tmp_path / "source/mine.csv").write_text("file,text\na.mp4,a dog, running\n")
    monkeypatch.setattr(examining, "examine", lambda *_: pytest.fail("a video was decoded"))
    with pytest.raises(InputError, match=r"mine\.csv, line 2: 3 cells, but the header has 2"):
        pack_folder(tmp_path / "source", tmp_path / "out", PackingSettings(workers=0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_changed_caption_is_a_changed_input(tmp_path):
    clip(tmp_path / "source/a.mp4", 1)
    (tmp_path / "source/a.caption").write_text("one")
    pack_folder(tmp_path / "source", tmp_path / "out", PackingSettings(workers=0))
    (tmp_path / "source/a.caption").write_text("another")
    with pytest.raises(InputError, match="not empty and was not packed from this input"):
        pack_folder(tmp_path / "source", tmp_path / "out", PackingSettings(workers=0))
