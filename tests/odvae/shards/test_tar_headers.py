"""The fast reader of tar headers against tarfile, on random tars of every kind, whole and damaged."""

import io
import random
import tarfile

import pytest

from odvae.running.errors import InputError
from odvae.shards import tars
from odvae.shards.tar_headers import read_ordinary_tar
from odvae.shards.tars import index_shard, shard_writer

NAMES = [
    "a",
    "b",
    "folder/c",
    "d.e",
    "ключ",
    "x" * 99,
    "deep/" * 30 + "f",
    ".hidden",
    "README",
    "../up",
    "/root",
    "g\\h",
]
FIELDS = [(100, 8), (108, 8), (124, 12), (136, 12), (148, 8), (156, 1), (257, 8), (329, 8), (345, 9)]
ENDINGS = [".mp4", ".txt", ".json", ".MP4", "", ".tar.gz", ".pt", "/"]
KINDS = [tarfile.REGTYPE] * 30 + [
    tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CONTTYPE, tarfile.FIFOTYPE,
    tarfile.GNUTYPE_SPARSE, b"Z",
]  # fmt: skip


def random_tar(rng: random.Random) -> bytes:
    """A tar as tools write them; half of them with nothing unusual."""
    usual = rng.random() < 0.5
    form = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as tar:
        for i in range(rng.randrange(6)):
            name = f"{rng.choice('abc')}{i}.{rng.choice(['mp4', 'txt', 'json'])}"
            info = tarfile.TarInfo(name if usual else rng.choice(NAMES) + rng.choice(ENDINGS))
            info.size = rng.choice([0, 1, 511, 512, 513, 70_000])
            info.mtime = rng.choice([0, 1_700_000_000, 1_700_000_000.25, -1])
            info.uid, info.uname = rng.choice([0, 1000, 3_000_000]), rng.choice(["", "me", "имя"])
            if not usual:
                info.type, info.linkname = rng.choice(KINDS), rng.choice(["a0.mp4", "nowhere", ""])
                if rng.random() < 0.1:
                    info.pax_headers = rng.choice([{"path": "z.mp4"}, {"comment": "x"}, {"size": "3"}, {"a\nb": "="}])
            try:
                tar.addfile(info, io.BytesIO(bytes(info.size)) if info.isreg() else None)
            except ValueError:  # does not fit into a ustar header
                continue
    return written.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    kind = rng.choice(["cut", "byte", "byte", "field", "joined"])
    if kind == "cut":
        return bytes(changed[: rng.randrange(len(changed) + 1)])
    if kind == "joined":
        return data + data
    if kind == "byte":
        changed[rng.randrange(min(len(data), 4096))] = rng.choice([0, 32, 48, 55, 56, 128, 255])
        return bytes(changed)
    block = rng.randrange(min(len(data) // 512, 8)) * 512
    first, size = rng.choice(
        [(100, 8), (108, 8), (124, 12), (136, 12), (148, 8), (156, 1), (257, 8), (329, 8), (345, 9)]
    )
    changed[block + first : block + first + size] = rng.choice([b"7", b" ", b"\0", b"8", b"\x80", b"\xff", b"-"]) * size
    if kind == "field" and rng.random() < 0.8:  # with a right checksum
        header = bytes(changed[block : block + 512])
        total = sum(header[:148]) + sum(header[156:]) + 256
        changed[block + 148 : block + 156] = b"%06o\0 " % total
    return bytes(changed)


def outcome(path):
    try:
        return index_shard(path)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("damages", [False, True])
def test_the_result_and_the_error_are_those_of_tarfile(tmp_path, monkeypatch, damages):
    rng, path, fast, seen = random.Random(0), tmp_path / "x.tar", 0, set()
    for _ in range(800):
        data = random_tar(rng)
        path.write_bytes(damaged(data, rng) if damages else data)
        found = outcome(path)
        fast += read_ordinary_tar(path) is not None
        with monkeypatch.context() as patched:
            patched.setattr(tars, "read_ordinary_tar", lambda shard: None)
            assert outcome(path) == found
        seen.add(type(found))
    assert seen == {list, str}
    assert fast > 100


def test_shards_of_this_project_and_of_webdataset_are_read_the_fast_way(tmp_path):
    with shard_writer(tmp_path / "x.tar") as writer:
        for i in range(3000):
            writer.write({"__key__": f"{i:07d}", "mp4": b"x" * (i % 1500), "txt": b"a"})
    files, end = read_ordinary_tar(tmp_path / "x.tar")
    assert len(files) == 6000
    assert end > files[-1][1]
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        info = tarfile.TarInfo("a.mp4")
        info.mtime, info.size = 1_700_000_000.123, 3  # webdataset writes the time like this, in a pax header
        tar.addfile(info, io.BytesIO(b"abc"))
    assert read_ordinary_tar(tmp_path / "y.tar") == ([("a.mp4", 1536, 3)], 2048)
