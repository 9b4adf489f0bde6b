"""The rows of shards: their samples with checksums of all members, and what is known of each.

What is known of them, beyond that, is the business of an `Indexer`: `odvae.index.video_rows` has that of videos.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from odvae.index.folder_index import FolderIndex
from odvae.index.rows import CAPTIONS_UNREADABLE, Header, IndexedShard, IndexRow
from odvae.running.hashing import checksum, checksum_of_pieces
from odvae.shards.captions import captions_of
from odvae.shards.samples import Member, Sample, group_in, split_position
from odvae.shards.tars import index_shard
from odvae.video.video_io import VideoFacts

# Members whose contents become columns of the index.
_TEXTS = ("json", "txt")

# Samples up to this many bytes are read at once; of larger ones, one piece of a member after the other.
_PIECE = 1 << 24


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


def shard_state(shard: Path) -> tuple[int, int]:
    """Size and modification time, by which a changed shard is recognized."""
    found = shard.stat()
    return found.st_size, found.st_mtime_ns


def samples_with_checksums(shard: Path) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Yield each sample of a shard, with checksums of its members, and the bytes of its .json and .txt.

    Raises the errors of `odvae.shards.tars.index_shard`.
    """
    samples = index_shard(shard)
    with open(shard, "rb", buffering=0) as file:
        for sample in samples:
            yield _with_checksums(sample, file.fileno())


def _with_checksums(sample: Sample, file: int) -> tuple[Sample, dict[str, bytes]]:
    first = min([one.offset for one in sample.members.values()])
    end = max([one.offset + one.size for one in sample.members.values()])
    if end - first > _PIECE:
        members = {name: one._replace(checksum=_checksum(file, one)) for name, one in sample.members.items()}
        texts = {name: os.pread(file, members[name].size, members[name].offset) for name in _TEXTS if name in members}
        return replace(sample, members=members), texts
    data = os.pread(file, end - first, first)
    members, texts = {}, {}
    for name, (offset, size, _) in sample.members.items():
        content = data[offset - first : offset - first + size]
        members[name] = Member(offset, size, checksum(content))
        if name in _TEXTS:
            texts[name] = content
    return Sample(sample.key, sample.shard, members), texts


def _checksum(file: int, member: Member) -> int:
    end = member.offset + member.size
    starts = range(member.offset, end, _PIECE)
    return checksum_of_pieces(os.pread(file, min(_PIECE, end - start), start) for start in starts)


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
