"""The opened index of a folder of shards: its samples by number, chosen by their columns, with no object a sample."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import pyarrow as pa

from odvae.index.rows import CHUNK, TRANSFERS, Header, IndexRow, parse_header
from odvae.index.selection import ChosenRows, Selection
from odvae.running.errors import InputError
from odvae.shards.samples import Member, Sample
from odvae.storage.files import local_copy
from odvae.video.video_io import VideoFacts

T = TypeVar("T")

_NUMBERS = (
    "shard", "split", "frames", "height", "width", "fps", "seconds", "variable_rate", "transfer", "has_time_steps",
    "captions", "label", "limited",
)  # fmt: skip
_BYTES = ("key", "group", "problem")


class Chunk:
    """Consecutive rows of an index as NumPy arrays on the mapped file: `chunk.frames`, `chunk.split`, ..."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.rows = len(batch)
        for name in _NUMBERS:
            setattr(self, name, batch.column(name).to_numpy(zero_copy_only=True))
        self.bytes = {name: _ByteStrings(batch.column(name)) for name in _BYTES}
        members = batch.column("members")
        self.members_from = members.offsets.to_numpy(zero_copy_only=True)
        self.extension, self.offset, self.size, self.checksum = (
            members.values.field(name).to_numpy(zero_copy_only=True)
            for name in ("extension", "offset", "size", "checksum")
        )
        self.lists = {
            name: (
                batch.column(name).offsets.to_numpy(zero_copy_only=True),
                batch.column(name).values.to_numpy(zero_copy_only=True),
            )
            for name in ("keyframes", "time_steps")
        }

    shard: np.ndarray
    split: np.ndarray
    frames: np.ndarray
    height: np.ndarray
    width: np.ndarray
    fps: np.ndarray
    seconds: np.ndarray
    variable_rate: np.ndarray
    transfer: np.ndarray
    has_time_steps: np.ndarray
    captions: np.ndarray
    label: np.ndarray
    limited: np.ndarray

    @property
    def has_problem(self) -> np.ndarray:
        """Whether each row has a `problem`."""
        return np.diff(self.bytes["problem"].offsets) > 0

    def pairs(self, name: str, row: int) -> list[tuple]:
        offsets, values = self.lists[name]
        own = values[offsets[row] : offsets[row + 1]].tolist()
        return list(zip(own[::2], own[1::2], strict=True))


class _ByteStrings:
    """Byte strings of a large_binary column, by row."""

    def __init__(self, column: pa.LargeBinaryArray) -> None:
        _, offsets, data = column.buffers()
        self.offsets = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
        self.data = data  # None where all are empty

    def __getitem__(self, row: int) -> str:
        first, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return os.fsdecode(self.data[first:end].to_pybytes()) if end > first else ""


def _of_a_row(read: Callable[[FolderIndex, int], T]) -> Callable[[FolderIndex, int], T]:
    """A method that reads something of a row, with an InputError where the row was damaged, as far as that is seen."""

    @functools.wraps(read)
    def guarded(self: FolderIndex, row: int) -> T:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        try:
            return read(self, row)
        except (IndexError, ValueError, OverflowError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path} was damaged: row {row} cannot be read ({error})") from None

    return guarded


class FolderIndex:
    """An index file, memory-mapped: its pages are shared by all processes of a machine. One at a URL is copied into the
    cache first.

    `folder` is where the shards are. Raises InputError where the file is no index.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        try:
            self._file = pa.memory_map(os.fspath(local_copy(path)))
            reader = pa.ipc.open_file(self._file)
            self.header: Header = parse_header(path, reader.schema)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate()
            self.chunks = [Chunk(batch) for batch in batches]
        except InputError:
            raise
        except Exception as error:  # of a damaged file, Arrow and NumPy raise errors of many types
            raise InputError(f"{path} is not an index of shards, or was damaged: {error}") from None
        if any(len(batch) != CHUNK for batch in batches[:-1]):
            raise InputError(f"{path} was damaged: a batch other than the last has not {CHUNK} rows")
        self._rows = sum(chunk.rows for chunk in self.chunks)
        # Joining a URL and a name takes longer than finding a row.
        self._shard_path = functools.lru_cache(4096)(lambda number: folder / self.header.shards[number].name)

    def __len__(self) -> int:
        return self._rows

    def __reduce__(self) -> tuple:
        """Pickled as its path or URL: another process maps the same file, and shares its pages."""
        return FolderIndex, (self.path, self.folder)

    @_of_a_row
    def key(self, row: int) -> str:
        chunk, i = self._locate(row)
        return chunk.bytes["key"][i]

    @_of_a_row
    def shard(self, row: int) -> Path:
        chunk, i = self._locate(row)
        return self._shard_path(int(chunk.shard[i]))

    @_of_a_row
    def problem(self, row: int) -> str:
        """Why the row's video cannot be used, as it follows the sample's name; empty if it can."""
        chunk, i = self._locate(row)
        return chunk.bytes["problem"][i]

    @_of_a_row
    def label(self, row: int) -> str | None:
        chunk, i = self._locate(row)
        return None if chunk.label[i] < 0 else self.header.labels[chunk.label[i]]

    @_of_a_row
    def facts(self, row: int) -> VideoFacts | None:
        """The facts of the row's video; None where the row has none."""
        chunk, i = self._locate(row)
        if not chunk.frames[i]:
            return None
        return VideoFacts(
            frames=int(chunk.frames[i]),
            height=int(chunk.height[i]),
            width=int(chunk.width[i]),
            fps=float(chunk.fps[i]),
            seconds=float(chunk.seconds[i]),
            variable_rate=bool(chunk.variable_rate[i]),
            keyframes=chunk.pairs("keyframes", i),
            transfer=TRANSFERS[chunk.transfer[i]],
            time_steps=[(step, int(count)) for step, count in chunk.pairs("time_steps", i)]
            if chunk.has_time_steps[i]
            else None,
        )

    @_of_a_row
    def sample(self, row: int) -> Sample:
        """The sample of a row; its members are read from the shard, and compared with their checksums, when asked."""
        chunk, i = self._locate(row)
        number = int(chunk.shard[i])
        members = self._members(chunk, i, self.header.shards[number].bytes)
        group = chunk.bytes["group"][i]
        return Sample(chunk.bytes["key"][i], self._shard_path(number), members, self.facts(row), group)

    def _members(self, chunk: Chunk, i: int, shard_bytes: int) -> dict[str, Member]:
        members = {}
        for j in range(int(chunk.members_from[i]), int(chunk.members_from[i + 1])):
            offset, size = int(chunk.offset[j]), int(chunk.size[j])
            if not 0 <= offset <= offset + size <= shard_bytes:
                raise ValueError(f"{size} bytes at {offset} of a shard of {shard_bytes} bytes")
            members[self.header.extensions[chunk.extension[j]]] = Member(offset, size, int(chunk.checksum[j]))
        return members

    @_of_a_row
    def row(self, row: int) -> IndexRow:
        """All that the index has of a row."""
        chunk, i = self._locate(row)
        sample = self.sample(row)
        return IndexRow(
            sample.key,
            sample.members,
            float(chunk.split[i]),
            sample.facts,
            int(chunk.captions[i]),
            self.label(row),
            chunk.bytes["group"][i],
            chunk.bytes["problem"][i],
            bool(chunk.limited[i]),
        )

    def select(self, chosen: Callable[[Chunk], np.ndarray]) -> IndexedSamples:
        """The samples for which `chosen`, a function of columns, gives True."""
        return IndexedSamples(self, Selection(chosen(chunk) for chunk in self.chunks))

    def _locate(self, row: int) -> tuple[Chunk, int]:
        number, i = divmod(row, CHUNK)
        return self.chunks[number], i


class IndexedSamples(Sequence[Sample]):
    """Some samples of an index, made when they are asked for."""

    def __init__(self, folder_index: FolderIndex, rows: ChosenRows) -> None:
        self.folder_index, self.rows = folder_index, rows

    def by_shard(self) -> Iterator[tuple[Path, IndexedSamples]]:
        """Each shard that has some of the samples, in order, and these samples."""
        first = 0
        for record in self.folder_index.header.shards:
            rows = self.rows.between(first, first + record.rows)
            first += record.rows
            if rows:
                yield self.folder_index.folder / record.name, IndexedSamples(self.folder_index, rows)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, position: int) -> Sample: ...

    @overload
    def __getitem__(self, position: slice) -> list[Sample]: ...

    def __getitem__(self, position: int | slice) -> Sample | list[Sample]:
        if isinstance(position, slice):
            return [self.folder_index.sample(row) for row in self.rows[position]]
        return self.folder_index.sample(self.rows[position])

    def __iter__(self) -> Iterator[Sample]:
        return map(self.folder_index.sample, self.rows)
