"""A sample of a WebDataset shard: offsets of its members in the tar, and reading of their bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from odvae.running.errors import InputError
from odvae.running.files import load_json
from odvae.running.hashing import checksum
from odvae.running.seeds import derive_seed
from odvae.running.text import printable, valid_unicode
from odvae.storage.files import prefetch_range, read_range
from odvae.storage.paths import is_remote
from odvae.video.extensions import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

if TYPE_CHECKING:
    from odvae.video.video_io import VideoFacts

# Separates the key of a video from the number of its scene.
SCENE_MARK = "+"

_MEDIA = frozenset((*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS))

# Members up to this many bytes are read whole, and compared with their checksum, when they are opened. Of larger ones
# only the requested bytes are read, which have no checksum of their own.
_LARGEST_READ_WHOLE = 1 << 26


class Member(NamedTuple):
    """Where a member's bytes are in the shard file, and their checksum where an index has it."""

    offset: int
    size: int
    checksum: int | None = None


class ChangedShardError(InputError):
    """A member's bytes are not those that were indexed."""


@dataclass(frozen=True)
class Sample:
    """A sample's key, and its members by extension."""

    key: str
    shard: Path
    members: dict[str, Member]
    facts: VideoFacts | None = None
    """Facts found by examining its video, if they are not in its .json (`odvae.shards.facts`)."""
    group: str = ""
    """Samples of a group are in the same split; empty: it is in none. Known where the sample comes from an index."""

    @property
    def name(self) -> str:
        """The sample's name in messages."""
        return printable(f"{self.shard}:{self.key}")

    @property
    def video_member(self) -> str:
        """The extension of the sample's video or image. Raises InputError if it has none."""
        for extension in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS):
            if extension in self.members:
                return extension
        raise InputError(f"{self.name} has no video, only {', '.join(sorted(self.members))}{self._dots_explained()}")

    @property
    def has_video(self) -> bool:
        return not _MEDIA.isdisjoint(self.members)

    def _dots_explained(self) -> str:
        dotted = [name for name in self.members if name.rpartition(".")[2] in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS)]
        if not dotted:
            return ""
        file = f"{self.key.rpartition('/')[2]}.{dotted[0]}"
        return (
            f" (in webdataset, a key ends at the first dot of a member's name, so {file} is read as key "
            f"{file.partition('.')[0]!r} with a member {dotted[0]!r}; rename the files so that the only dot is before "
            "the extension, or pack them with make_shards, which renames them)"
        )

    def read(self, extension: str) -> bytes:
        """The bytes of a member. Raises InputError if the sample has no such member or the shard was truncated, and
        ChangedShardError if the bytes are not those that were indexed."""
        member = self._member(extension)
        data = read_range(self.shard, member.offset, member.size)
        if len(data) < member.size:
            raise ChangedShardError(
                f"{self.name}: the shard ends inside .{extension}; it was truncated after it was indexed"
            )
        self._check(extension, data)
        return data

    def read_all(self) -> dict[str, bytes]:
        """The bytes of all members, with a single read. Raises the errors of `read`."""
        first, end = self._extent()
        data = read_range(self.shard, first, end - first)
        if len(data) < end - first:
            raise ChangedShardError(f"{self.name}: the shard ends inside it; it was truncated after it was indexed")
        found = {}
        for name, (offset, size, _) in self.members.items():
            found[name] = data[offset - first : offset - first + size]
            self._check(name, found[name])
        return found

    def _check(self, extension: str, data: bytes) -> None:
        expected = self.members[extension].checksum
        if expected is not None and checksum(data) != expected:
            raise ChangedShardError(
                f"{self.name}.{extension}: its checksum is {checksum(data):016x}, that in the index {expected:016x}; "
                "the shard was changed or damaged after it was indexed"
            )

    def prefetch(self) -> None:
        """Have the sample's bytes read in the background, before a call of `read_all`."""
        first, end = self._extent()
        prefetch_range(self.shard, first, end - first)

    def _extent(self) -> tuple[int, int]:
        """Start of its first member and end of its last one."""
        first = min(member.offset for member in self.members.values())
        return first, max(member.offset + member.size for member in self.members.values())

    def open(self, extension: str) -> io.RawIOBase | io.BytesIO:
        """A member as a file object. One with a checksum is read whole and compared with it, unless it is large; of
        others only the requested bytes are read."""
        member = self._member(extension)
        if member.checksum is not None and member.size <= _LARGEST_READ_WHOLE:
            return io.BytesIO(self.read(extension))
        return MemberFile(self.shard, member.offset, member.size)

    def _member(self, extension: str) -> Member:
        if extension not in self.members:
            raise InputError(f"{self.name} has no .{extension}, only {', '.join(sorted(self.members))}")
        return self.members[extension]

    def read_json(self) -> dict:
        """The .json member of a sample written by this project (of others: `odvae.shards.facts.about_sample`)."""
        if "json" not in self.members:
            return {}
        try:
            return load_json(self.read("json"))
        except ValueError as error:
            raise InputError(f"{self.name}.json is not valid JSON: {error}") from None

    def read_text(self) -> str:
        """The caption (.txt), or "" if the sample has none. Raises InputError if it is not UTF-8."""
        if "txt" not in self.members:
            return ""
        try:
            return self.read("txt").decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name}.txt is not UTF-8 ({error.reason} at byte {error.start})") from None


class MemberFile(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file object."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        # A remote one has no file of its own: its bytes come by way of the cache.
        self._file = None if is_remote(path) else open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._path = path
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
        view = memoryview(buffer)[:wanted]
        if self._file is not None:
            read = os.preadv(self._file.fileno(), [view], self._offset + self._position)
        else:
            data = read_range(self._path, self._offset + self._position, wanted)
            read = len(data)
            view[:read] = data
        self._position += read
        return read

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def scene_key(video_key: str, scene: int) -> str:
    """The key of a scene of a video."""
    return f"{video_key}{SCENE_MARK}{scene:03d}"


def video_of(key: str) -> str:
    """The key of the video that a scene is from; for the key of a video, the key itself."""
    return key.partition(SCENE_MARK)[0]


def group_in(about: Mapping[str, Any]) -> str:
    """The group in the entries of a KEY.json; empty where there is none."""
    group = about.get("group")
    return valid_unicode(group) if isinstance(group, str) else ""


def split_position(key: str, group: str) -> float:
    """A number in [0, 1) of a video, the same for all videos of a group and for all scenes of a video: below the
    held-out share, it is held out. `group` is empty for a video that is in no group."""
    return derive_seed("held out", group or video_of(key)) / 2**63
