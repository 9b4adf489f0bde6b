"""The entries of a folder of latents by split and bucket, as sequences on its index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ldm.latents.entries import load_entries
from ldm.latents.index_files import open_index
from ldm.latents.manifest import Manifest, encode_command
from odvae.index.folder_index import FolderIndex, IndexedSamples
from odvae.index.selection import RangesOfSelection, Selection
from odvae.running.errors import InputError


@dataclass(frozen=True)
class LatentSet:
    """The entries of a latent folder, by split and bucket, and the names of the classes.

    It has no object an entry: two bits of an entry in memory, and the index, which all processes of a machine share.
    """

    train: dict[str, IndexedSamples]
    held_out: dict[str, IndexedSamples]
    classes: list[str]


def open_latents(folder: Path, manifest: Manifest) -> LatentSet:
    """Open the index of a latent folder; where there is none it is made first. Collective.

    Raises InputError where the numbers of entries differ from the manifest's.
    """
    index = open_index(folder, manifest)
    latents = choose_entries(index, manifest)
    counts = tuple(sum(len(entries) for entries in split.values()) for split in (latents.train, latents.held_out))
    if counts != (manifest.train_entries, manifest.held_out_entries):
        raise InputError(
            f"{folder} holds {counts[0]} training and {counts[1]} held-out entries, but its manifest lists "
            f"{manifest.train_entries} and {manifest.held_out_entries}; run: {encode_command()}"
        )
    return latents


def choose_entries(index: FolderIndex, manifest: Manifest) -> LatentSet:
    """The entries of an index of the manifest's shards: the bucket follows from the shard, the split from the video."""
    train, held_out = (
        index.select(lambda chunk: chunk.split >= manifest.held_out),
        index.select(lambda chunk: chunk.split < manifest.held_out),
    )
    if len(manifest.buckets) == 1:
        (bucket,) = manifest.buckets
        return LatentSet({bucket: train}, {bucket: held_out}, manifest.classes)
    first_rows = np.cumsum([0, *(record.entries for record in manifest.shards)])
    of_shards = np.stack([first_rows[:-1], first_rows[1:]], axis=1)
    bucket_of_shard = np.array([record.bucket for record in manifest.shards])

    def by_bucket(split: IndexedSamples) -> dict[str, IndexedSamples]:
        assert isinstance(split.rows, Selection)
        ranges = {name: of_shards[bucket_of_shard == name] for name in manifest.buckets}
        return {name: IndexedSamples(index, RangesOfSelection(split.rows, rows)) for name, rows in ranges.items()}

    return LatentSet(by_bucket(train), by_bucket(held_out), manifest.classes)


def held_out_batches(latents: LatentSet, batch_size: int, rank: int, ranks: int) -> Iterator[dict[str, Tensor]]:
    """This rank's share of the held-out entries, in batches of one bucket; `number` is the entry's index among all.

    Raises InputError that names the entry where one cannot be read, or is not what was indexed.
    """
    first = 0
    for entries in latents.held_out.values():
        mine = range(rank, len(entries), ranks)
        for i in range(0, len(mine), batch_size):
            chosen = mine[i : i + batch_size]
            numbers = [first + number for number in chosen]
            yield load_entries([entries[number] for number in chosen], numbers, latents.classes)
        first += len(entries)
