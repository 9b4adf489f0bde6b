"""The rows of shards: their samples with checksums of all members, and what is known of each.

What is known of them, beyond that, is the business of an `Indexer`: `odvae.index.video_rows` has that of videos.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from odvae.index.folder_index import FolderIndex
from odvae.index.rows import CAPTIONS_UNREADABLE, Header, IndexedShard, IndexRow
from odvae.running.hashing import checksum, checksum_of_pieces
from odvae.shards.captions import captions_of
from odvae.shards.samples import Member, Sample, group_in, split_position
from odvae.shards.tars import index_shard
from odvae.storage.files import prefetch_range, read_range
from odvae.storage.listing import list_states
from odvae.storage.paths import is_remote, is_web_server
from odvae.storage.states import FileState, file_state
from odvae.video.video_io import VideoFacts

# Members whose contents become columns of the index.
_TEXTS = ("json", "txt")

# Neighboring samples that together have up to `_NEAR` bytes are read at once, also a sample of up to `_PIECE`; of
# larger ones, one piece of a member after the other.
_NEAR, _PIECE = 1 << 20, 1 << 24

# Of shards at a URL: bytes that are requested before they are needed, and in one request.
_READ_AHEAD, _AHEAD_PIECE = 1 << 26, 1 << 23

# Shards at a URL whose states are requested at a time.
_THREADS = 16

# Called with each number of bytes that are done, for a progress bar.
Advance = Callable[[int], Any]


@dataclass
class ShardRows:
    """What the index of a shard has."""

    shard: IndexedShard
    rows: list[IndexRow]
    reader: str = ""
    """The decoder with which its videos were examined; empty if none was."""
    limits: list[float] = field(default_factory=list)
    """The limits that some videos exceeded; empty if none did."""


class Indexer(Protocol):
    """What makes the rows of a folder's shards."""

    def index(
        self, shards: Iterable[tuple[int, Path, FolderIndex | None]], advance: Advance
    ) -> Iterator[tuple[int, ShardRows]]:
        """Yield the rows of each shard, in order, with its number.

        With the number and the shard comes its earlier index, if there is one and the shard's bytes have not changed
        since. Raises InputError for a shard that cannot be read.
        """
        ...

    def keeps(self, header: Header) -> bool:
        """Whether all rows of an earlier index are still right, if the shards' bytes have not changed."""
        ...

    def changed(self, shard: Path) -> None:
        """Say that a shard has changed since it was indexed, so that it is indexed again, or raise InputError."""
        ...

    def done(self, shard: Path) -> None:
        """The index of the shard is written."""
        ...


@dataclass(frozen=True)
class ShardState:
    """What a changed shard is recognized by: its size, and its modification time or, at a URL, its version."""

    bytes: int
    mtime_ns: int = 0
    version: str = ""

    def of_index(self, name: str, rows: int, ignored: dict[str, int]) -> IndexedShard:
        """The record of a shard that was indexed in this state."""
        return IndexedShard(name, self.bytes, self.mtime_ns, rows, ignored, version=self.version)

    def fits(self, record: IndexedShard) -> bool:
        """Whether a shard was in this state when it was indexed.

        An index that was made on a disk and copied into a bucket with its shards knows no versions there: the sizes
        have to do, and a shard that was replaced by another one of the same size is found when it is read.
        """
        if self.bytes != record.bytes:
            return False
        if self.version:
            return record.version in ("", self.version)
        return self.mtime_ns == record.mtime_ns

    def __iter__(self) -> Iterator[int | str]:
        """Size, and time or version, as they are written into records."""
        return iter((self.bytes, self.version or self.mtime_ns))


def shard_state(shard: Path) -> ShardState:
    """The state of a shard now. Raises StorageError, or OSError for a local one, where it is missing."""
    size, version = file_state(shard)
    return ShardState(size, version=version) if is_remote(shard) else ShardState(size, int(version))


def shard_states(folder: Path, shards: Sequence[Path]) -> list[ShardState]:
    """The states of a folder's shards; at a URL from its list, where that has their sizes."""
    if not is_remote(folder):
        return [shard_state(shard) for shard in shards]
    listed = {} if is_web_server(folder) else list_states(folder)
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda shard: _state_in(listed, shard), shards))


def _state_in(listed: Mapping[str, FileState], shard: Path) -> ShardState:
    found = listed.get(shard.name)
    return shard_state(shard) if found is None else ShardState(found.size, version=found.version)


def samples_with_checksums(shard: Path) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Yield each sample of a shard, with checksums of its members, and the bytes of its .json and .txt.

    Raises the errors of `odvae.shards.tars.index_shard`.
    """
    ahead = _ReadAhead(shard)
    for samples, first, end in _read_together(index_shard(shard)):
        ahead.up_to(first + _READ_AHEAD)
        if end - first > _PIECE:
            yield from map(_with_checksums_by_pieces, samples)
            continue
        data = memoryview(read_range(shard, first, end - first))
        for sample in samples:
            yield _with_checksums(sample, data, first)


def _read_together(samples: Iterable[Sample]) -> Iterator[tuple[list[Sample], int, int]]:
    """Neighboring samples that are read at once, with the extent of them all: first byte and end."""
    group: list[Sample] = []
    first = end = 0
    for sample in samples:
        its_first, its_end = sample.extent()
        if group and max(end, its_end) - min(first, its_first) > _NEAR:
            yield group, first, end
            group = []
        first, end = (min(first, its_first), max(end, its_end)) if group else (its_first, its_end)
        group.append(sample)
    if group:
        yield group, first, end


class _ReadAhead:
    """Has the bytes of a shard at a URL read in advance; a disk does that by itself."""

    def __init__(self, shard: Path) -> None:
        self.shard, self._read = shard, 0

    def up_to(self, end: int) -> None:
        while is_remote(self.shard) and self._read < end:
            prefetch_range(self.shard, self._read, _AHEAD_PIECE)
            self._read += _AHEAD_PIECE


def _with_checksums_by_pieces(sample: Sample) -> tuple[Sample, dict[str, bytes]]:
    shard = sample.shard
    members = {name: one._replace(checksum=_checksum(shard, one)) for name, one in sample.members.items()}
    texts = {name: read_range(shard, *members[name][:2]) for name in _TEXTS if name in members}
    return replace(sample, members=members), texts


def _with_checksums(sample: Sample, data: memoryview, start: int) -> tuple[Sample, dict[str, bytes]]:
    """`data` are the bytes of the shard from `start` on."""
    members, texts = {}, {}
    for name, (offset, size, _) in sample.members.items():
        content = data[offset - start : offset - start + size]
        members[name] = Member(offset, size, checksum(content))
        if name in _TEXTS:
            texts[name] = bytes(content)
    return Sample(sample.key, sample.shard, members), texts


def _checksum(shard: Path, member: Member) -> int:
    end = member.offset + member.size
    starts = range(member.offset, end, _PIECE)
    return checksum_of_pieces(read_range(shard, start, min(_PIECE, end - start)) for start in starts)


@contextlib.contextmanager
def garbage_collected_by_shard() -> Iterator[None]:
    """Rows are millions of small objects, among which the garbage collector would search again and again for cycles
    that there are not: a quarter of the time. So it does not run by itself: within it, call `gc.collect(1)` after each
    shard."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def make_row(sample: Sample, about: dict[str, Any], text: bytes | None, facts: VideoFacts | None) -> IndexRow:
    """The row of a sample with checksums, from the valid entries of its .json and from its text."""
    label, group = about.get("label"), group_in(about)
    return IndexRow(
        sample.key,
        sample.members,
        split_position(sample.key, group),
        facts,
        _count_captions(text, about),
        None if label is None else str(label),
        group,
    )


def _count_captions(text: bytes | None, about: dict[str, Any]) -> int:
    try:
        return len(captions_of(None if text is None else text.decode().strip(), about))
    except UnicodeDecodeError:
        return CAPTIONS_UNREADABLE
