"""Reading of shards: as packed, as others write them, damaged, and with what must not be in them."""

import json
import os
import shutil
import tarfile

import pytest
import webdataset as wds
from small import tar_of

from odvae.clips.clip import load_clip
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet, is_held_out
from odvae.packing.packing import pack_folder
from odvae.running.errors import InputError
from odvae.shards.tars import index_shards, list_shards


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


@pytest.mark.parametrize("name", ["/etc/passwd.mp4", "../up.mp4", "a/../../b.mp4", "x\\..\\y.mp4"])
def test_names_that_reach_outside_a_shard_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"x\.tar: member .* has a path outside"):
        index_shards([tar_of(tmp_path / "x.tar", [("ok.mp4", b"1"), (name, b"2")])])


@pytest.mark.parametrize("extension", ["pkl", "pyd", "PICKLE", "pth"])
def test_pickled_members_are_refused_and_never_read(tmp_path, extension):
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    with pytest.raises(InputError, match="is pickled and could run code"):
        index_shards([tar_of(tmp_path / "x.tar", [("a.mp4", b"1"), (f"a.{extension}", bomb)])])
    assert not (tmp_path / "ran").exists()


def test_a_member_twice_in_a_shard_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"duplicate member .*a\.mp4"):
        index_shards([tar_of(tmp_path / "x.tar", [("a.mp4", b"1"), ("b.mp4", b"1"), ("a.mp4", b"2")])])


def test_a_caption_in_a_shard_that_is_not_utf_8_is_named(tmp_path):
    (sample,) = index_shards([tar_of(tmp_path / "x.tar", [("a.mp4", b"1"), ("a.txt", b"caf\xe9")])])
    with pytest.raises(InputError, match=r"x\.tar:a\.txt is not UTF-8"):
        sample.read_text()


def test_a_shard_replaced_while_it_is_read_is_read_anew(tmp_path):
    (old,) = index_shards([tar_of(tmp_path / "x.tar", [("a.txt", b"old")])])
    assert old.read_text() == "old"
    os.replace(tar_of(tmp_path / "y.tar", [("a.txt", b"new")]), tmp_path / "x.tar")
    assert old.read_text() == "new"


def test_samples_without_a_video_are_left_out_and_named(source, tmp_path):
    pack_folder(source, tmp_path / "out")
    tar_of(tmp_path / "out/00001.tar", [("lonely.txt", b"a caption"), ("lonely.json", b"{}")])
    with tarfile.open(tmp_path / "out/00000.tar") as tar:  # keys depend on the encoder's bytes
        keys = {name.split(".")[0] for name in tar.getnames()}
    share = next(i / 100 for i in range(1, 100) if any(is_held_out(key, "", i / 100) for key in keys))
    data = DataSettings(frames=9, height=32, width=32, held_out=share, workers=0)
    videos = VideoSet(tmp_path / "out", data, "?")
    assert len(videos.train) + len(videos.held_out) == 3
    assert "1 left out" in videos.describe()
    assert "lonely has no video, only json, txt" in videos.describe()


def test_shards_of_video2dataset_are_taken_as_they_come(source, tmp_path):
    """No frames in the json, another name for the caption's field, no json at all: the file itself is asked."""
    members = []
    for i, name in enumerate(["a.mp4", "b.mp4", "sub/a.mp4"]):
        about = {"key": f"{i:07d}", "url": "...", "caption": "x", "status": "success"}
        members += [(f"{i:07d}.mp4", (source / name).read_bytes()), (f"{i:07d}.txt", b"square")]
        members += [(f"{i:07d}.json", json.dumps(about).encode())] if i else []
    (tmp_path / "v2d").mkdir()
    tar_of(tmp_path / "v2d/00000.tar", members)
    for workers, fps in ((0, None), (2, None), (0, 4.0)):
        data = DataSettings(frames=5, height=32, width=32, held_out=0.5, workers=workers, fps=fps)
        videos = VideoSet(tmp_path / "v2d", data.model_copy(update={"frames": 1 if fps else 5}), "?")
        assert len(videos.train) + len(videos.held_out) == 3
    assert load_clip(videos.samples[0], data.model_copy(update={"frames": 3}), 1).shape == (3, 32, 32, 3)


def test_webdataset_reads_the_shards(source, tmp_path):
    pack_folder(source, tmp_path / "out")
    samples = list(wds.WebDataset(str(tmp_path / "out/00000.tar"), shardshuffle=False))
    assert len(samples) == 3
    assert all({"__key__", "mp4", "txt", "json"} <= sample.keys() for sample in samples)
