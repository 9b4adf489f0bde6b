"""A sample of a WebDataset shard: offsets of its members in the tar, and reading of their bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from odvae.running.errors import InputError
from odvae.running.files import load_json
from odvae.running.hashing import checksum
from odvae.running.seeds import derive_seed
from odvae.running.text import printable, valid_unicode
from odvae.storage.files import prefetch_range, read_range, reread_range
from odvae.storage.open_file import FilePart
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
        return self._checked(extension, data)

    def read_all(self) -> dict[str, bytes]:
        """The bytes of all members, with a single read. Raises the errors of `read`."""
        first, end = self.extent()
        data = read_range(self.shard, first, end - first)
        return {
            name: self._checked(name, data[offset - first : offset - first + size])
            for name, (offset, size, _) in self.members.items()
        }

    def _checked(self, extension: str, data: bytes) -> bytes:
        """A member's bytes as they were read, if they are what was indexed; from elsewhere they are read once more."""
        if not self._is_right(extension, data) and is_remote(self.shard):
            data = reread_range(self.shard, self.members[extension].offset, self.members[extension].size)
        if self._is_right(extension, data):
            return data
        if len(data) < self.members[extension].size:
            raise ChangedShardError(
                f"{self.name}: the shard ends inside .{extension}; it was truncated after it was indexed"
            )
        raise ChangedShardError(
            f"{self.name}.{extension}: its checksum is {checksum(data):016x}, that in the index "
            f"{self.members[extension].checksum:016x}; the shard was changed or damaged after it was indexed"
        )

    def _is_right(self, extension: str, data: bytes) -> bool:
        _, size, expected = self.members[extension]
        return len(data) == size and (expected is None or checksum(data) == expected)

    def prefetch(self) -> None:
        """Have the sample's bytes read in the background, before a call of `read_all`."""
        first, end = self.extent()
        prefetch_range(self.shard, first, end - first)

    def extent(self) -> tuple[int, int]:
        """Start of its first member and end of its last one."""
        first = min([offset for offset, _, _ in self.members.values()])
        return first, max([offset + size for offset, size, _ in self.members.values()])

    def open(self, extension: str) -> io.RawIOBase | io.BytesIO:
        """A member as a file object. One with a checksum is read whole and compared with it, unless it is large; of
        others only the requested bytes are read."""
        member = self._member(extension)
        if member.checksum is not None and member.size <= _LARGEST_READ_WHOLE:
            return io.BytesIO(self.read(extension))
        return FilePart(self.shard, member.offset, member.size)

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
