"""The index of text in shards of its own: `text/index/SHARD.arrow`, and `text/index.arrow` of all.

It has a row for each row of the latents' index, with the key and the members of the row's video.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from ldm.latents.manifest import Manifest
from ldm.latents.text_manifest import TEXT_FOLDER, TextShardRecord, check_text, embed_command
from odvae.index.building import INDEX
from odvae.index.folder_index import FolderIndex
from odvae.index.merging import merge_indexes
from odvae.index.rows import IndexedShard, read_header
from odvae.running.distributed import main_process_first
from odvae.running.errors import InputError
from odvae.shards.facts_journal import shard_index_path


def open_text_index(folder: Path, manifest: Manifest) -> FolderIndex | None:
    """The index of the text of a folder of latents; None where the text is with the latents. Collective.

    Raises InputError where the captions are not embedded yet, where the text is that of other latents, and where an
    index is missing.
    """
    if manifest.lacks_text:
        raise InputError(f"{folder}: the captions of these latents are not embedded yet; run: {embed_command()}")
    text = manifest.separate_text
    if text is None:
        return None
    check_text(folder, text, manifest.shards)
    path, state = folder / TEXT_FOLDER / INDEX, PartialState()
    with main_process_first(on_each_machine=True):
        if state.is_local_main_process and not _is_of(path, text.shards):
            write_text_index(folder, text.shards)
        return FolderIndex(path, folder / TEXT_FOLDER)


def write_text_index(folder: Path, shards: Sequence[TextShardRecord]) -> None:
    """Merge the indexes of these shards. Raises InputError with the first one that is missing or of another one."""
    paths = [shard_index_path(folder / TEXT_FOLDER, record.name) for record in shards]
    for path, record in zip(paths, shards, strict=True):
        if not _is_of(path, [record]):
            raise InputError(f"{path} is not the index of {record.name}, or is missing; run: {embed_command()}")
    merge_indexes(folder / TEXT_FOLDER / INDEX, paths)


def has_index(folder: Path, record: TextShardRecord) -> bool:
    """Whether the index of a shard of text is there, and is of this shard."""
    return _is_of(shard_index_path(folder / TEXT_FOLDER, record.name), [record])


def _is_of(path: Path, records: Sequence[TextShardRecord]) -> bool:
    if not path.is_file():
        return False
    try:
        found: Sequence[IndexedShard] = read_header(path).shards
    except (OSError, ValueError):  # of pyarrow and InputError
        return False
    expected = [(record.name, record.bytes, record.entries, record.sha256) for record in records]
    return [(shard.name, shard.bytes, shard.rows, shard.sha256) for shard in found] == expected
