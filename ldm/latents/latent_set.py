"""The entries of a folder of latents by split and bucket, as sequences on its index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ldm.latents.entries import EntryForm, load_entries, source_key
from ldm.latents.index_files import open_index
from ldm.latents.manifest import Manifest, encode_command
from ldm.latents.text_index import open_text_index
from odvae.index.folder_index import FolderIndex, IndexedSamples
from odvae.index.selection import ChosenRows, RangesOfSelection, Selection
from odvae.running.errors import InputError
from odvae.shards.samples import Sample


class LatentEntries(IndexedSamples):
    """The entries of one split and bucket, of the same `form` (None: it is not checked)."""

    def __init__(
        self,
        folder_index: FolderIndex,
        rows: ChosenRows,
        form: EntryForm | None = None,
        text_index: FolderIndex | None = None,
    ) -> None:
        super().__init__(folder_index, rows)
        self.form, self.text_index = form, text_index

    def load(self, positions: Sequence[int], numbers: Sequence[int], classes: Sequence[str]) -> dict[str, Tensor]:
        """A batch of the entries at these positions, as from `load_entries` without a seed."""
        rows = [self.rows[position] for position in positions]
        entries = [self.folder_index.sample(row) for row in rows]
        texts = None
        if self.text_index is not None:
            texts = [text_at(self.text_index, row, entry) for row, entry in zip(rows, entries, strict=True)]
        return load_entries(entries, numbers, classes, form=self.form, texts=texts)


@dataclass(frozen=True)
class LatentSet:
    """The entries of a latent folder, by split and bucket, and the names of the classes.

    It has no object an entry: two bits of an entry in memory, and the index, which all processes of a machine share.
    """

    train: dict[str, LatentEntries]
    held_out: dict[str, LatentEntries]
    classes: list[str]


def text_at(index: FolderIndex, row: int, entry: Sample) -> Sample:
    """The text of the entry in a row, from the index of the text.

    Raises InputError where its captions could not be read, and where the row is of another video.
    """
    text = index.sample(row)
    if text.key != source_key(entry.key):
        raise InputError(f"{entry.name}: the text in row {row} of {index.path} is of another video, {text.key}")
    if problem := index.problem(row):
        raise InputError(f"{text.name}{problem}")
    return text


def open_latents(folder: Path, manifest: Manifest, with_text: bool = True) -> LatentSet:
    """Open the index of a latent folder; where there is none it is made first. Collective.

    `with_text` False: text that is in shards of its own is not read. Raises InputError where the numbers of entries
    differ from the manifest's, and where the text is not that of these latents.
    """
    text = open_text_index(folder, manifest) if with_text else None
    latents = choose_entries(open_index(folder, manifest), manifest, text, with_text)
    counts = tuple(sum(len(entries) for entries in split.values()) for split in (latents.train, latents.held_out))
    if counts != (manifest.train_entries, manifest.held_out_entries):
        raise InputError(
            f"{folder} holds {counts[0]} training and {counts[1]} held-out entries, but its manifest lists "
            f"{manifest.train_entries} and {manifest.held_out_entries}; run: {encode_command()}"
        )
    return latents


def choose_entries(
    index: FolderIndex, manifest: Manifest, text: FolderIndex | None = None, with_text: bool = True
) -> LatentSet:
    """The entries of an index of the manifest's shards: the bucket follows from the shard, the split from the video."""
    train = Selection(chunk.split >= manifest.held_out for chunk in index.chunks)
    held_out = Selection(chunk.split < manifest.held_out for chunk in index.chunks)
    forms = {bucket: manifest.entry_form(bucket, with_text) for bucket in manifest.buckets}
    if len(manifest.buckets) == 1:
        ((bucket, form),) = forms.items()
        return LatentSet(
            {bucket: LatentEntries(index, train, form, text)},
            {bucket: LatentEntries(index, held_out, form, text)},
            manifest.classes,
        )
    first_rows = np.cumsum([0, *(record.entries for record in manifest.shards)])
    of_shards = np.stack([first_rows[:-1], first_rows[1:]], axis=1)
    bucket_of_shard = np.array([record.bucket for record in manifest.shards])

    def by_bucket(split: Selection) -> dict[str, LatentEntries]:
        ranges = {name: of_shards[bucket_of_shard == name] for name in manifest.buckets}
        return {
            name: LatentEntries(index, RangesOfSelection(split, rows), forms[name], text)
            for name, rows in ranges.items()
        }

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
            yield entries.load(chosen, numbers, latents.classes)
        first += len(entries)
