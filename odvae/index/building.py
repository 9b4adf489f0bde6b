"""Making the index of a folder: the index of each shard where it is missing or no longer right, then the folder's.

`FOLDER/index/SHARD.arrow` has the rows of a shard, `FOLDER/index.arrow` those of all; where the folder, a path or a
URL, cannot be written, both are below the user's cache folder. An index is right while its shards have the size and
modification time (at a URL: the version) that it records. With the same size and another time, as in a copied folder,
the checksums of all members are compared.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from odvae.cluster.parts import Part
from odvae.index.duplicates import find_copies
from odvae.index.folder_index import FolderIndex
from odvae.index.merging import merge_indexes
from odvae.index.rows import Header, read_header, write_shard_index
from odvae.index.shard_rows import (
    Advance,
    Indexer,
    ShardRows,
    garbage_collected_by_shard,
    samples_with_checksums,
    shard_states,
)
from odvae.running.errors import InputError
from odvae.running.files import temporary_path
from odvae.running.progress import progress_bar
from odvae.running.text import counted
from odvae.shards.facts_journal import INDEX_FOLDER, index_places, shard_index_path
from odvae.shards.tars import list_shards
from odvae.storage.files import atomic_file, make_parent
from odvae.storage.listing import list_names
from odvae.storage.paths import StorageError, is_remote, is_web_server
from odvae.storage.states import find_state
from odvae.storage.whole_files import remove

INDEX = "index.arrow"

# Missing shards that are named in an error.
_SHOWN = 20

# Indexes of shards at a URL that are fetched at a time.
_THREADS = 16


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


def find_shards(folder: Path, command: str) -> list[Path]:
    """The shards of a folder, a path or a URL. Those of a web server, which need not list its files, are taken from its
    index, if it has one. Raises the errors of `list_shards`."""
    if is_web_server(folder) and find_state(folder / INDEX) is not None:
        return [folder / shard.name for shard in read_header(folder / INDEX).shards]
    return list_shards(folder, command)


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
        self._states = shard_states(folder, shards)
        self._parts: list[_PartIndex] = []

    def right_index(self) -> FolderIndex | None:
        """The folder's index, if there is one and it is right."""
        for place in self._places:
            path = place / INDEX
            if find_state(path) is None:
                continue
            try:
                index = FolderIndex(path, self.folder)
            except InputError as error:
                _say(f"{error}; it is made again")
                continue
            if self._are_as_in(index.header) and self.indexer.keeps(index.header):
                return index
        return None

    def _are_as_in(self, header: Header) -> bool:
        if [one.name for one in header.shards] != [shard.name for shard in self.shards]:
            return False
        return all(state.fits(one) for state, one in zip(self._states, header.shards, strict=True))

    @property
    def parts(self) -> list[_PartIndex]:
        """The index of each shard."""
        if not self._parts:
            there = [list_names(place / INDEX_FOLDER) for place in self._places]
            with ThreadPoolExecutor(_THREADS if is_remote(self.folder) else 1) as threads:
                self._parts = list(threads.map(lambda number: self._find(number, there), range(len(self.shards))))
        return self._parts

    def _find(self, number: int, there: Sequence[Collection[str]]) -> _PartIndex:
        """The index of a shard; `there` are the names of the files in both places."""
        shard, state = self.shards[number], self._states[number]
        found = [_PartIndex()]
        for place, names in zip(self._places, there, strict=True):
            path = shard_index_path(place, shard.name)
            if path.name not in names:
                continue
            try:
                header = read_header(path)
            except InputError as error:
                _say(f"{error}; it is made again")
                continue
            same_size = [(one.name, one.bytes) for one in header.shards] == [(shard.name, state.bytes)]
            same_state = same_size and state.fits(header.shards[0])
            is_right = same_state and self.indexer.keeps(header)
            found.append(_PartIndex(path, header, is_right, same_size, same_state))
        return max(found, key=lambda part: (part.quality, part.path is not None))

    def complete(self, numbers: Sequence[int]) -> None:
        """Make the indexes of these shards where they are missing or not right."""
        todo = [number for number in numbers if not self.parts[number].is_right]
        if not todo:
            return
        total = sum(self._states[number].bytes for number in todo)
        description = f"indexing {counted(len(todo), 'shard')}"
        with progress_bar(description, 0, total, unit="B", unit_scale=True) as bar, garbage_collected_by_shard():
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
                state = self._states[number]
                record = replace(header.shards[0], mtime_ns=state.mtime_ns, version=state.version)
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

    @functools.cached_property
    def written_to(self) -> Path:
        return writable_place(self.folder)


def writable_place(folder: Path) -> Path:
    """The first of a folder's `index_places` that can be written. Raises InputError where none can."""
    places, problem = index_places(folder), ""
    for place in places:
        if not (problem := _why_not_writable(place / INDEX_FOLDER)):
            return place
    raise InputError(
        f"the index of {folder} can be written neither into {places[0]} nor into {places[1]} ({problem}); "
        "XDG_CACHE_HOME names another cache folder"
    )


def _why_not_writable(folder: Path) -> str:
    """Why files cannot be written into a folder, which is made; empty if they can."""
    probe = temporary_path(folder / INDEX)
    try:
        make_parent(probe)
        with atomic_file(probe) as file:
            file.write(b"1")
        if is_remote(probe):
            remove(probe)
        else:
            probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    except StorageError as error:
        return str(error)
    return ""


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
