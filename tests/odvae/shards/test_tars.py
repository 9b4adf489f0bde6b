"""Tars of various tools: their samples, or an error with the command that repairs them."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile

import pytest
import webdataset as wds

from odvae.running.errors import InputError
from odvae.shards.tars import index_shard, index_shards, list_shards, split_member_name


def tar_of(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                tar.addfile(info)
    return path


HARD, SOFT = tarfile.LNKTYPE, tarfile.SYMTYPE
TWO = [("a.mp4", b"video a"), ("a.txt", b"text a"), ("b.mp4", b"video b"), ("b.txt", b"text b")]


def contents(path):
    return {sample.key: {name: sample.read(name) for name in sorted(sample.members)} for sample in index_shard(path)}


PLAIN = {"a": {"mp4": b"video a", "txt": b"text a"}, "b": {"mp4": b"video b", "txt": b"text b"}}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read_long_and_foreign_names_too(tmp_path, kind):
    long = "folder/" * 15 + "k" * 90
    names = [long, "ключ", "an emoji 🎬"] if kind != tarfile.USTAR_FORMAT else ["ключ"]
    path = tar_of(tmp_path / "x.tar", [(f"{name}.mp4", name.encode()) for name in names], format=kind)
    assert contents(path) == {name: {"mp4": name.encode()} for name in names}


def test_what_a_mac_adds_belongs_to_no_sample(tmp_path):
    extra = [
        (".DS_Store", b"x"),
        ("./._a.mp4", b"x"),
        ("__MACOSX/._b.mp4", b"x"),
        ("README", b"x"),
        ("sub/.hid.mp4", b""),
    ]
    for i, members in enumerate((TWO, [("c.mp4", b"video c")])):
        mixed = [member for pair in zip(extra, [*members, *TWO][: len(extra)]) for member in pair]  # noqa: B905
        seen = dict(mixed)
        tar_of(
            tmp_path / f"{i}.tar", [(name, seen[name]) for name in seen if i == 0 or name.startswith((".", "c", "_"))]
        )
    (tmp_path / "._0.tar").write_bytes(b"what a Mac writes beside a file on a foreign disk")
    assert contents(tmp_path / "0.tar") == PLAIN
    assert [sample.key for sample in index_shards(list_shards(tmp_path, "?"))] == ["a", "b", "c"]


def test_keys_are_those_that_webdataset_finds(tmp_path):
    names = ["a.mp4", "sub.1/b.mp4", "./c.mp4", "d.e.mp4", "._f.mp4", ".g", "h", "k.MP4", "l m.txt"]
    path = tar_of(tmp_path / "x.tar", [(name, b"x") for name in names])
    theirs = list(wds.WebDataset(str(path), shardshuffle=False))
    assert [sample.key for sample in index_shard(path)] == [sample["__key__"] for sample in theirs]
    ours = [sorted(sample.members) for sample in index_shard(path)]
    assert ours == [sorted(name.lower() for name in sample if not name.startswith("__")) for sample in theirs]
    assert split_member_name("x/y.tar.gz") == ("x/y", "tar.gz")


def test_a_key_with_dots_is_explained(tmp_path):
    path = tar_of(tmp_path / "x.tar", [("trip/day 1.5s.mp4", b"x"), ("trip/day 1.5s.txt", b"x")])
    (sample,) = index_shard(path)
    with pytest.raises(InputError, match=r"ends at the first dot.*day 1\.5s\.mp4 is read as key 'day 1'.*rename"):
        sample.video_member  # noqa: B018


def test_links_within_a_shard_are_followed_and_others_are_named(tmp_path):
    links = [
        ("a.mp4", b"video"),
        ("sub/b.mp4", (HARD, "a.mp4")),
        ("sub/c.mp4", (SOFT, "b.mp4")),
        ("d.mp4", (SOFT, "e.mp4")),
    ]
    path = tar_of(tmp_path / "x.tar", [*links, ("e.mp4", b"later"), ("./f.mp4", (SOFT, "sub/../a.mp4"))])
    assert contents(path) == {
        "a": {"mp4": b"video"},
        "sub/b": {"mp4": b"video"},
        "sub/c": {"mp4": b"video"},
        "d": {"mp4": b"later"},
        "e": {"mp4": b"later"},
        "./f": {"mp4": b"video"},
    }
    for target in ("/data/a.mp4", "../../etc/passwd", "gone.mp4", "a.mp4"):  # the last is a link to itself
        path = tar_of(tmp_path / "y.tar", [("a.mp4", (SOFT, target)), ("a.txt", b"x")])
        with pytest.raises(InputError, match=r"y\.tar: member a\.mp4 is a link to .*tar --dereference"):
            index_shard(path)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar")
def test_the_tars_of_gnu_tar(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in TWO:
        (folder / name).write_bytes(data)
    os.link(folder / "a.mp4", folder / "c.mp4")
    version = subprocess.run(["tar", "--version"], capture_output=True, text=True, check=False).stdout
    if "GNU tar" not in version:
        pytest.skip("needs GNU tar")
    for kind in ("gnu", "pax", "ustar", "v7", "oldgnu"):
        subprocess.run(["tar", f"--format={kind}", "-cf", tmp_path / "x.tar", "-C", folder, "."], check=True)
        found = {key.removeprefix("./"): members for key, members in contents(tmp_path / "x.tar").items()}
        assert found == {**PLAIN, "c": {"mp4": b"video a"}}
    with open(folder / "d.mp4", "wb") as file:
        file.truncate(1 << 20)
        file.write(b"x")
    for kind in ("gnu", "pax"):
        words = ["tar", f"--format={kind}", "--sparse", "-cf", tmp_path / "x.tar", "-C", folder, "d.mp4"]
        subprocess.run(words, check=True)
        with tarfile.open(tmp_path / "x.tar") as tar:
            is_sparse = tar.getmembers()[0].issparse()
        if is_sparse:  # not every file system has holes
            with pytest.raises(
                InputError, match=r"x\.tar: member 'd\.mp4' is stored as a sparse file.*without tar's --sparse"
            ):
                index_shard(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("ending", "pack", "command"),
    [
        (".tar.gz", gzip.compress, "gunzip"),
        (".tgz", gzip.compress, "gunzip"),
        (".tar.bz2", bz2.compress, "bunzip2"),
        (".tar.xz", lzma.compress, "unxz"),
        (".tar.zst", lambda data: b"\x28\xb5\x2f\xfd" + data, "zstd -d --rm"),
    ],
)
def test_compressed_shards_are_named_with_the_command_that_unpacks_them(tmp_path, ending, pack, command):
    folder = tmp_path / "my shards"
    folder.mkdir()
    whole = tar_of(tmp_path / "x.tar", TWO).read_bytes()
    for i in range(2):
        (folder / f"0000{i}{ending}").write_bytes(pack(whole))
    (folder / "00002.tar").write_bytes(whole)
    with pytest.raises(InputError, match=r"holds 2 shards compressed with") as error:
        list_shards(folder, "?")
    line = str(error.value).rpartition("with: ")[2]
    assert line == f"{command} '{folder}'/*{ending}"
    if command == "gunzip":
        subprocess.run(line, shell=True, check=True)
        assert [path.name for path in list_shards(folder, "?")] == ["00000.tar", "00001.tar", "00002.tar"]
        assert contents(folder / "00000.tar") == PLAIN
    hidden = folder / "00003.tar"
    hidden.write_bytes(pack(whole))
    with pytest.raises(
        InputError, match=rf"is not a complete tar file, it is compressed with .*; decompress it with: mv .*{command}"
    ):
        index_shard(hidden)


def test_unpacked_twins_are_enough_and_sub_folders_are_hinted_at(tmp_path):
    whole = tar_of(tmp_path / "0.tar", TWO).read_bytes()
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(whole))
    assert list_shards(tmp_path, "?") == [tmp_path / "0.tar"]
    (tmp_path / "more" / "part 0").mkdir(parents=True)
    shutil.copy(tmp_path / "0.tar", tmp_path / "more" / "part 0")
    with pytest.raises(
        InputError, match=r"holds no \.tar shard \(but 1 in its sub-folders: name one of them, like .*part 0\)"
    ):
        list_shards(tmp_path / "more", "?")


def test_a_folder_of_videos_is_named_with_the_command_that_packs_it_elsewhere(tmp_path):
    (tmp_path / "a.MP4").touch()
    with pytest.raises(
        InputError, match=rf"holds videos \(a\.MP4, .*tools/make_shards.py {tmp_path} SHARDS.*data\.shards="
    ):
        list_shards(tmp_path, "?")


def test_a_shard_that_was_cut_or_joined_is_named_wherever_that_was(tmp_path):
    whole = tar_of(tmp_path / "x.tar", TWO).read_bytes()
    for end in (0, 100, 512, 515, 1024, 1100, 3 * 512, 4 * 1024 - 1, 4 * 1024):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"cut\.tar is (truncated|not a complete tar file)"):
            index_shard(tmp_path / "cut.tar")
    (tmp_path / "short.tar").write_bytes(whole[: 4 * 1024 + 512])  # one block of the end mark is enough for all readers
    assert contents(tmp_path / "short.tar") == PLAIN
    (tmp_path / "joined.tar").write_bytes(whole + whole.replace(b"a.", b"c.").replace(b"b.", b"d."))
    with pytest.raises(InputError, match=r"joined\.tar continues after its end mark at byte 4096.*tar --concatenate"):
        index_shard(tmp_path / "joined.tar")


@pytest.mark.parametrize("data", [b"", b"<html>an error page</html>", bytes(10240), b"\xff" * 3000])
def test_what_is_no_tar_is_named(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    if data.strip(b"\0") or not data:
        with pytest.raises(InputError, match=r"x\.tar is not a complete tar file"):
            index_shard(tmp_path / "x.tar")
    else:
        assert index_shard(tmp_path / "x.tar") == []
