"""WebDataset tar shards: written whole, read by an index of offsets.

A shard is a plain tar; the members of one sample follow each other and share a key: `KEY.mp4 KEY.txt KEY.json`.
The index lists where each member's bytes lie, so that sample i is one read away, whatever shard it is in. Nothing is
ever extracted or unpickled: names that reach outside a folder and pickled members are refused.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import webdataset as wds

from odvae.running.errors import InputError
from odvae.running.files import written_aside

# Between the key of a video and the number of one of its scenes.
SCENE_MARK = "+"

# What webdataset's default decoder would unpickle.
PICKLED = (".pkl", ".pickle", ".pyd", ".pth", ".pt")


@dataclass(frozen=True)
class Sample:
    """Where one sample's members lie: extension -> (offset, size) in the shard file."""

    key: str
    shard: Path
    members: dict[str, tuple[int, int]]

    @property
    def name(self) -> str:
        """How messages name the sample."""
        return f"{self.shard}:{self.key}"

    def read(self, extension: str) -> bytes:
        """One member's bytes. Raises InputError when the sample has no such member or the shard was cut."""
        offset, size = self._place(extension)
        data = _read_at(self.shard, size, offset)
        if len(data) < size:
            raise InputError(f"{self.name}: the shard ends inside .{extension}; it was cut after it was indexed")
        return data

    def read_all(self) -> dict[str, bytes]:
        """Every member's bytes, by one read."""
        first, end = self._extent()
        data = _read_at(self.shard, end - first, first)
        if len(data) < end - first:
            raise InputError(f"{self.name}: the shard ends inside it; it was cut after it was indexed")
        return {name: data[offset - first : offset - first + size] for name, (offset, size) in self.members.items()}

    def prefetch(self) -> None:
        """Have the system fetch the sample's bytes from disk in the background: `read_all` comes soon."""
        first, end = self._extent()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(_open_now(self.shard).fileno(), first, end - first, os.POSIX_FADV_WILLNEED)

    def _extent(self) -> tuple[int, int]:
        """Where its first member begins and its last ends."""
        first = min(offset for offset, _ in self.members.values())
        return first, max(offset + size for offset, size in self.members.values())

    def open(self, extension: str) -> MemberFile:
        """One member as a file, of which only what is asked for is read."""
        return MemberFile(self.shard, *self._place(extension))

    def _place(self, extension: str) -> tuple[int, int]:
        if extension not in self.members:
            raise InputError(f"{self.name} has no .{extension}, only {', '.join(sorted(self.members))}")
        return self.members[extension]

    def read_json(self) -> dict:
        """The sample's .json member, or an empty dict where it has none."""
        if "json" not in self.members:
            return {}
        try:
            return json.loads(self.read("json"))
        except json.JSONDecodeError as error:
            raise InputError(f"{self.name}.json is not valid JSON: {error}") from None

    def read_text(self) -> str:
        """The caption (.txt), or "" where the sample has none. Raises InputError where it is not UTF-8."""
        if "txt" not in self.members:
            return ""
        try:
            return self.read("txt").decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name}.txt is not UTF-8 ({error.reason} at byte {error.start})") from None


class MemberFile(io.RawIOBase):
    """The bytes from `offset` on of a file, `size` of them, as a file of their own."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + position)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(memoryview(buffer)), self._size - self._position))
        read = os.preadv(self._file.fileno(), [memoryview(buffer)[:wanted]], self._offset + self._position)
        self._position += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()


@functools.lru_cache(maxsize=128)
def _open_file(path: Path, _identity: tuple[int, ...]) -> BinaryIO:
    return open(path, "rb", buffering=0)  # closed when it leaves the cache


def _read_at(path: Path, size: int, offset: int) -> bytes:
    """Bytes of a file that stays open for the next read: opening one can cost more than reading it."""
    return os.pread(_open_now(path).fileno(), size, offset)


def _open_now(path: Path) -> BinaryIO:
    now = os.stat(path)  # a shard that was replaced is another file under the same name
    return _open_file(path, (now.st_dev, now.st_ino, now.st_mtime_ns))


def scene_key(video_key: str, scene: int) -> str:
    """The key of one scene of a video."""
    return f"{video_key}{SCENE_MARK}{scene:03d}"


def video_of(key: str) -> str:
    """The key of the video that a scene is from; of a whole video, its own key."""
    return key.partition(SCENE_MARK)[0]


def list_shards(folder: str | Path, command: str) -> list[Path]:
    """The .tar files of a folder, sorted. `command` is what makes them, for the error when there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; make it with: {command}")
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise InputError(f"folder {folder} holds no .tar shard; make them with: {command}")
    return shards


def index_shard(shard: Path) -> list[Sample]:
    """The samples of one shard in file order, from its tar headers. Raises InputError for a cut or foreign file."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                check_member_name(member.name, shard)
                folder, _, file_name = member.name.rpartition("/")
                stem, _, extension = file_name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                members = samples.setdefault(key, {})
                if extension.lower() in members:
                    raise InputError(f"{shard}: {member.name} is there twice")
                members[extension.lower()] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InputError(f"{shard} is not a whole tar file: {error}") from None
    end = max((offset + size for members in samples.values() for offset, size in members.values()), default=0)
    if end > shard.stat().st_size:
        raise InputError(f"{shard} is cut: {shard.stat().st_size} bytes, but its last member ends at {end}")
    return [Sample(key, shard, members) for key, members in samples.items()]


def check_member_name(name: str, shard: Path | str) -> None:
    """Refuse what no honest shard holds."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts:
        raise InputError(f"{shard}: member {name!r} reaches outside the shard; such shards are refused")
    if parts[-1].lower().endswith(PICKLED):
        raise InputError(f"{shard}: member {name!r} is pickled, which may hold any code; such shards are refused")


def index_shards(shards: list[Path]) -> list[Sample]:
    """The samples of all shards, in order. Raises InputError where two samples share a key."""
    samples = [sample for shard in shards for sample in index_shard(shard)]
    seen: dict[str, Sample] = {}
    for sample in samples:
        if sample.key in seen:
            raise InputError(f"key {sample.key} is in {seen[sample.key].shard} and in {sample.shard}")
        seen[sample.key] = sample
    return samples


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[wds.TarWriter]:
    """A WebDataset tar writer whose file appears at `path` only when whole; same samples, same bytes.

    Values are bytes (`{"__key__": key, "mp4": ..., "json": ...}`): nothing is encoded behind the caller's back.
    """
    with written_aside(path) as file:
        writer = wds.TarWriter(file, encoder=False, mtime=0, user="odvae", group="odvae")
        try:
            yield writer
        finally:
            writer.close()
