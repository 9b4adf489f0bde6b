"""The index of a folder of latents: `index/SHARD.arrow` of each shard, and `index.arrow` of all, in manifest order.

Encoding writes them. A folder without them, such as one of version 0.2, gets them by one pass over its shards at first
use. In a row of the index: the entry's key, its members with checksums, the split position of its video, its class and
the number of its captions.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from ldm.latents.entries import read_about, source_key
from ldm.latents.manifest import Manifest, ShardRecord, changed_hash, encode_command
from odvae.cluster.parts import Part
from odvae.index.building import INDEX, check_all_indexed, writable_place
from odvae.index.folder_index import FolderIndex
from odvae.index.merging import merge_indexes
from odvae.index.rows import Header, IndexedShard, IndexRow, read_header, write_shard_index
from odvae.index.shard_rows import garbage_collected_by_shard, samples_with_checksums
from odvae.running.distributed import main_process_first
from odvae.running.errors import InputError
from odvae.running.progress import progress_bar
from odvae.shards.facts_journal import INDEX_FOLDER, index_places, shard_index_path
from odvae.shards.samples import Member, Sample, group_in, split_position
from odvae.shards.tars import index_shard
from odvae.storage.paths import StorageError
from odvae.storage.states import file_state, find_state
from odvae.storage.whole_files import fingerprint

# The `reader` in these indexes: there are no facts of videos in them, which a decoder would have found.
_READER = "latents"

# Shards that are read at a time, by threads: computing checksums does not hold Python's lock.
_THREADS = 4


@dataclass(frozen=True)
class WrittenEntry:
    """An entry that was written into a shard."""

    key: str
    checksums: dict[str, int]
    """Checksum of each member, by extension."""
    captions: int
    label: str | None
    group: str


def written_rows(shard: Path, written: Sequence[WrittenEntry]) -> list[IndexRow]:
    """The index rows of a shard's entries, in order: places from the finished file, checksums from what was written."""
    rows = []
    for sample, entry in zip(index_shard(shard), written, strict=True):
        assert sample.key == entry.key, f"{shard} has {sample.key} in place of {entry.key}"
        members = {name: one._replace(checksum=entry.checksums[name]) for name, one in sample.members.items()}
        rows.append(_row(sample.key, members, entry.captions, entry.label, entry.group))
    return rows


def latent_rows(shard: Path) -> list[IndexRow]:
    """The index rows of a shard's entries, by reading all of it. An entry whose .json is damaged has a `problem`.

    Raises InputError for a truncated or invalid tar.
    """
    return [_row_of(sample, texts) for sample, texts in samples_with_checksums(shard)]


def _row_of(sample: Sample, texts: Mapping[str, bytes]) -> IndexRow:
    members = sample.members
    try:
        if missing := {"json", "safetensors"} - members.keys():
            raise InputError(f"{sample.name} has no .{' and no .'.join(sorted(missing))}")
        about = read_about(texts["json"], sample.name)
    except InputError as error:
        return _row(sample.key, members, 0, None, problem=str(error).removeprefix(sample.name))
    label, captions = about.get("label"), about.get("captions")
    count = len(captions) if isinstance(captions, list) else int(bool(about.get("caption")))
    if not (label is None or isinstance(label, str)):
        return _row(sample.key, members, count, None, problem=f".json: label {label!r:.100} is no name of a class")
    return _row(sample.key, members, count, label, group_in(about))


def _row(
    key: str, members: Mapping[str, Member], captions: int, label: str | None, group: str = "", problem: str = ""
) -> IndexRow:
    position = split_position(source_key(key), group)
    return IndexRow(key, dict(members), position, captions=captions, label=label, group=group, problem=problem)


def write_latent_index(path: Path, shard: Path, rows: Sequence[IndexRow], sha256: str) -> None:
    """Write the index of a shard of latents with this sha256, by which the manifest's shard is recognized.

    A modification time is not recorded, so that the same shards have the same index, byte for byte.
    """
    indexed = IndexedShard(shard.name, file_state(shard).size, 0, len(rows), sha256=sha256)
    write_shard_index(path, indexed, rows, _READER, [])


def open_index(folder: Path, manifest: Manifest) -> FolderIndex:
    """The index of a folder of latents. Collective: the main process of each machine makes what is missing.

    That the index is of these shards is known by their names, sizes, sha256 and numbers of entries, which are in its
    header and in the manifest; no data is read. The bytes of an entry are compared with its checksum when it is read.
    Raises InputError for a shard without an index that is not what the manifest says.
    """
    state = PartialState()
    with main_process_first(on_each_machine=True):
        index = find_index(folder, manifest)
        if index is None and state.is_local_main_process:
            index = FolderIndex(_make(folder, manifest), folder)
    if index is None:
        raise InputError(f"{folder}: the index that another process has made is not visible here")
    return index


def index_part(folder: Path, manifest: Manifest, part: Part) -> Path:
    """Make the indexes of a part of the shards, every `part.count`-th of them, where they are missing; returns the
    folder that they are in."""
    records = manifest.shards[part.number - 1 :: part.count]
    return _make_missing(folder, records)[0] / INDEX_FOLDER


def finish_index(folder: Path, manifest: Manifest) -> None:
    """Merge the shards' indexes. Raises InputError with those that are missing."""
    missing = [record.name for record in manifest.shards if _find_of_shard(folder, record) is None]
    check_all_indexed(folder, missing, len(manifest.shards))
    write_folder_index(folder, manifest)


def write_folder_index(folder: Path, manifest: Manifest) -> None:
    """Write `index.arrow` from the indexes of the manifest's shards; a shard without one is read."""
    if find_index(folder, manifest) is None:
        _make(folder, manifest)


def find_index(folder: Path, manifest: Manifest) -> FolderIndex | None:
    """The index of exactly the manifest's shards; None where there is none, or it is damaged."""
    for base in index_places(folder):
        if find_state(base / INDEX) is not None:
            try:
                index = FolderIndex(base / INDEX, folder)
            except StorageError:
                raise
            except InputError:  # it is made again
                continue
            if _are(index.header.shards, manifest.shards):
                return index
    return None


def _header(path: Path) -> Header | None:
    """The header of a shard's index; None where the file is missing or damaged, and has to be made again."""
    if find_state(path) is None:
        return None
    try:
        return read_header(path)
    except StorageError:
        raise
    except (OSError, ValueError):  # of pyarrow and InputError
        return None


def _are(shards: Sequence[IndexedShard], records: Sequence[ShardRecord]) -> bool:
    indexed = [(shard.name, shard.bytes, shard.rows, shard.sha256) for shard in shards]
    return indexed == [(record.name, record.bytes, record.entries, record.sha256) for record in records]


def _make(folder: Path, manifest: Manifest) -> Path:
    base, parts = _make_missing(folder, manifest.shards)
    merge_indexes(base / INDEX, parts)
    return base / INDEX


def _make_missing(folder: Path, records: Sequence[ShardRecord]) -> tuple[Path, list[Path]]:
    """Make the indexes of these shards where they are missing; returns where they were written, and all of them."""
    base = writable_place(folder)
    return base, _make_in(base, folder, records)


def _make_in(base: Path, folder: Path, records: Sequence[ShardRecord]) -> list[Path]:
    parts = []
    with (
        ThreadPoolExecutor(_THREADS) as threads,
        progress_bar("indexing latents", 0, len(records), unit="shard") as bar,
        garbage_collected_by_shard(),
    ):
        for part in threads.map(lambda record: _shard_index(folder, base, record), records):
            parts.append(part)
            gc.collect(1)
            bar.update()
    return parts


def _find_of_shard(folder: Path, record: ShardRecord) -> Path | None:
    """The index of a shard that is as the manifest says."""
    for path in (shard_index_path(base, record.name) for base in index_places(folder)):
        header = _header(path)
        if header is not None and _are(header.shards, [record]):
            return path
    return None


def _shard_index(folder: Path, base: Path, record: ShardRecord) -> Path:
    """Path of the index of a shard, which is made where there is none. Raises InputError for a changed shard."""
    if (found := _find_of_shard(folder, record)) is not None:
        return found
    shard, path = folder / record.name, shard_index_path(base, record.name)
    again = f"restore the file, or remove {folder} and run: {encode_command()}"
    if find_state(shard) is None:
        raise InputError(f"{shard} is missing, but the manifest lists it; {again}")
    rows, sha256 = latent_rows(shard), fingerprint(shard)
    if sha256 != record.sha256:
        raise InputError(f"{changed_hash(shard, sha256, record.sha256)}; {again}")
    if len(rows) != record.entries:
        raise InputError(f"{shard} holds {len(rows)} entries, but the manifest lists {record.entries}; {again}")
    write_latent_index(path, shard, rows, sha256)
    return path
