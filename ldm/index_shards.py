"""Indexing of a folder of shards, of videos or of latents, in one pass or in parts on any number of machines."""

from __future__ import annotations

import shlex
from pathlib import Path

from ldm.latents import index_files
from ldm.latents.manifest import MANIFEST, load_manifest
from odvae.cluster.parts import Part
from odvae.index.building import find_shards, finish_index, index_part, open_index
from odvae.index.settings import IndexingSettings
from odvae.index.video_rows import VideoIndexer
from odvae.running.commands import command_line
from odvae.running.text import counted
from odvae.shards.facts import ExamineLimits
from odvae.storage.states import find_state


def index_folder(folder: Path, settings: IndexingSettings) -> str:
    """Index a part of the folder's shards, or finish its index, or both; returns what was done, as text.

    Raises InputError for a folder without shards, a shard that cannot be read, two samples with the same key, and where
    parts are missing.
    """
    part = settings.chosen_part
    if find_state(folder / MANIFEST) is not None:
        return _index_latents(folder, part, settings.finish)
    shards = find_shards(folder, f"{command_line('make_shards')} SRC {shlex.quote(str(folder))}")
    indexer = VideoIndexer(ExamineLimits(settings.workers, settings.decode_seconds, settings.decode_gib))
    if part is not None:
        place = index_part(folder, shards, indexer, part)
        return _describe_part(part, len(range(part.number - 1, len(shards), part.count)), place)
    index = finish_index(folder, shards, indexer) if settings.finish else open_index(folder, shards, indexer)
    problems = sum(int(chunk.has_problem.sum()) for chunk in index.chunks)
    unusable = f", {problems} of them unusable" if problems else ""
    return f"{index.path}: {counted(len(index), 'sample')} in {counted(len(shards), 'shard')}{unusable}"


def _index_latents(folder: Path, part: Part | None, finish: bool) -> str:
    manifest = load_manifest(folder)
    if part is not None:
        place = index_files.index_part(folder, manifest, part)
        return _describe_part(part, len(manifest.shards[part.number - 1 :: part.count]), place)
    if finish:
        index_files.finish_index(folder, manifest)
    index = index_files.open_index(folder, manifest)
    return f"{index.path}: {len(index)} entries in {counted(len(manifest.shards), 'shard')}"


def _describe_part(part: Part, shards: int, place: Path) -> str:
    return f"part {part}: {counted(shards, 'shard')} indexed in {place}; finish=true merges all parts"
