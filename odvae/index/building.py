"""Making the index of a folder: the index of each shard where it is missing or no longer right, then the folder's.

`FOLDER/index/SHARD.arrow` has the rows of a shard, `FOLDER/index.arrow` those of all; where the folder cannot be
written, both are below the user's cache folder. An index is right while its shards have the size and modification time
that it records. With the same size and another time, as in a copied folder, the checksums of all members are compared.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from odvae.cluster.parts import Part
from odvae.index.duplicates import find_copies
from odvae.index.folder_index import FolderIndex
from odvae.index.rows import Header, merge_indexes, read_header, write_shard_index
from odvae.index.shard_rows import Advance, Indexer, ShardRows, samples_with_checksums, shard_state
from odvae.running.errors import InputError
from odvae.running.files import temporary_path
from odvae.running.progress import progress_bar
from odvae.running.text import counted
from odvae.shards.facts_journal import INDEX_FOLDER, index_places, shard_index_path

INDEX = "index.arrow"

# Missing shards that are named in an error.
_SHOWN = 20


def open_index(folder: Path, shards: Sequence[Path], indexer: Indexer) -> FolderIndex:
    """The index of the folder's shards; what is missing of it, or no longer right, is made first.

    Raises InputError for a shard that cannot be read, for two samples with the same key, and where no index can be
    written.
    """
    making = _Making(folder, shards, indexer)
    found = making.right_index()
    if found is not None:
        return found
    making.complete(range(len(shards)))
    return making.merge()


def index_part(folder: Path, shards: Sequence[Path], indexer: Indexer, part: Part) -> Path:
    """Make the indexes of a part of the shards, every `part.count`-th of them, where they are missing or not right.

    Returns the folder that they are in. Raises InputError for a shard that cannot be read, and where no index can be
    written.
    """
    making = _Making(folder, shards, indexer)
    making.complete(range(part.number - 1, len(shards), part.count))
    return making.written_to / INDEX_FOLDER


def index_one(shard: Path, indexer: Indexer) -> None:
    """Make the index of a shard that was just written, whatever index there is."""
    making = _Making(shard.parent, [shard], indexer)
    for number, rows in indexer.index([(0, shard, None)], lambda count: None):
        making.write(number, rows)
        indexer.done(shard)


def finish_index(folder: Path, shards: Sequence[Path], indexer: Indexer) -> FolderIndex:
    """Merge the shards' indexes, which must all have been made. Raises InputError with those that are missing, and for
    two samples with the same key."""
    making = _Making(folder, shards, indexer)
    missing = [shard.name for shard, part in zip(shards, making.parts, strict=True) if not part.is_right]
    check_all_indexed(folder, missing, len(shards))
    return making.right_index() or making.merge()


def check_all_indexed(folder: Path, missing: Sequence[str], total: int) -> None:
    """Raise InputError with the names of the shards that have no right index, of `total` ones, where there are any."""
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise InputError(
            f"{len(missing)} of the {counted(total, 'shard')} in {folder} have no right index: "
            f"{', '.join(missing[:_SHOWN])}{more}. Run their parts again, or the command without finish=true, which "
            "makes all that is missing"
        )


@dataclass
class _PartIndex:
    """The index of a shard, if there is one."""

    path: Path | None = None
    header: Header | None = None
    is_right: bool = False
    same_size: bool = False
    same_state: bool = False
    """Whether the shard still has the size and modification time with which it was indexed."""

    @property
    def quality(self) -> tuple[bool, bool, bool]:
        return self.is_right, self.same_state, self.same_size


class _Making:
    """The work on a folder's index."""

    def __init__(self, folder: Path, shards: Sequence[Path], indexer: Indexer) -> None:
        self.folder, self.shards, self.indexer = folder, shards, indexer
        self._places = index_places(folder)
        self._states = [shard_state(shard) for shard in shards]
        self._parts: list[_PartIndex] = []
        self._written_to: Path | None = None

    def right_index(self) -> FolderIndex | None:
        """The folder's index, if there is one and it is right."""
        expected = [(shard.name, *state) for shard, state in zip(self.shards, self._states, strict=True)]
        for place in self._places:
            path = place / INDEX
            if not path.is_file():
                continue
            try:
                index = FolderIndex(path, self.folder)
            except InputError as error:
                _say(f"{error}; it is made again")
                continue
            recorded = [(one.name, one.bytes, one.mtime_ns) for one in index.header.shards]
            if recorded == expected and self.indexer.keeps(index.header):
                return index
        return None

    @property
    def parts(self) -> list[_PartIndex]:
        """The index of each shard."""
        if not self._parts:
            self._parts = [self._find(number) for number in range(len(self.shards))]
        return self._parts

    def _find(self, number: int) -> _PartIndex:
        shard, (size, mtime) = self.shards[number], self._states[number]
        found = [_PartIndex()]
        for place in self._places:
            path = shard_index_path(place, shard.name)
            if not path.is_file():
                continue
            try:
                header = read_header(path)
            except InputError as error:
                _say(f"{error}; it is made again")
                continue
            same_size = [(one.name, one.bytes) for one in header.shards] == [(shard.name, size)]
            same_state = same_size and header.shards[0].mtime_ns == mtime
            is_right = same_state and self.indexer.keeps(header)
            found.append(_PartIndex(path, header, is_right, same_size, same_state))
        return max(found, key=lambda part: (part.quality, part.path is not None))

    def complete(self, numbers: Sequence[int]) -> None:
        """Make the indexes of these shards where they are missing or not right."""
        todo = [number for number in numbers if not self.parts[number].is_right]
        if not todo:
            return
        total = sum(self._states[number][0] for number in todo)
        description = f"indexing {counted(len(todo), 'shard')}"
        with progress_bar(description, 0, total, unit="B", unit_scale=True) as bar, _garbage_collected_by_shard():
            waiting = self._not_only_copied(todo, bar.update)
            for number, rows in self.indexer.index(waiting, bar.update):
                self.write(number, rows)
                self.indexer.done(self.shards[number])
                gc.collect(1)

    def _not_only_copied(self, todo: Sequence[int], advance: Advance) -> Iterator[tuple[int, Path, FolderIndex | None]]:
        """The shards of `todo` whose rows must be made, each with its earlier index if its bytes are still the same;
        of others, of which only the modification time has changed, the index is renewed here."""
        for number in todo:
            part, shard = self.parts[number], self.shards[number]
            earlier = None
            if part.path is not None and part.same_size:
                earlier = FolderIndex(part.path, self.folder)
                if not part.same_state and not _has_same_bytes(shard, earlier):
                    earlier = None
            if part.path is not None and earlier is None:
                self.indexer.changed(shard)
            if earlier is not None and self.indexer.keeps(earlier.header):
                header = earlier.header
                record = replace(header.shards[0], mtime_ns=self._states[number][1])
                rows = [earlier.row(row) for row in range(len(earlier))]
                self.write(number, ShardRows(record, rows, header.reader, header.limits))
                advance(record.bytes)
            else:
                yield number, shard, earlier

    def write(self, number: int, rows: ShardRows) -> None:
        """Write the index of a shard."""
        path = shard_index_path(self.written_to, self.shards[number].name)
        write_shard_index(path, rows.shard, rows.rows, rows.reader, rows.limits)
        self.parts[number] = _PartIndex(path, is_right=True)

    def merge(self) -> FolderIndex:
        """Merge the shards' indexes, which must all be right."""
        paths = [part.path for part in self.parts if part.path is not None]
        merge_indexes(self.written_to / INDEX, paths, find_copies(self.shards, paths))
        return FolderIndex(self.written_to / INDEX, self.folder)

    @property
    def written_to(self) -> Path:
        """The first of the two places that can be written."""
        for place in self._places if self._written_to is None else ():
            try:
                (place / INDEX_FOLDER).mkdir(parents=True, exist_ok=True)
                probe = temporary_path(place / INDEX_FOLDER / INDEX)
                probe.touch()
                probe.unlink()
            except OSError as error:
                problem = error
                continue
            self._written_to = place
            break
        if self._written_to is None:
            raise InputError(
                f"the index of {self.folder} can be written neither into {self._places[0]} nor into {self._places[1]} "
                f"({problem.strerror}); XDG_CACHE_HOME names another cache folder"
            )
        return self._written_to


@contextlib.contextmanager
def _garbage_collected_by_shard() -> Iterator[None]:
    """Rows are millions of small objects, among which the garbage collector would search again and again for cycles
    that there are not: a quarter of the time. So it does not run by itself, but is called after each shard."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _has_same_bytes(shard: Path, earlier: FolderIndex) -> bool:
    """Whether a shard has the members that were indexed, by their checksums."""
    rows = 0
    for sample, _ in samples_with_checksums(shard):
        if rows == len(earlier) or earlier.key(rows) != sample.key or earlier.sample(rows).members != sample.members:
            return False
        rows += 1
    return rows == len(earlier)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
