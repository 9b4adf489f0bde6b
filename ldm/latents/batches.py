"""Endless training batches of encoded clips, whose entries are a function of the step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.latents.entries import collate_entries, label_index, load_tensors
from ldm.latents.latent_set import LatentEntries, LatentSet, text_at
from odvae.clips.sample_order import SampleOrder
from odvae.clips.samplers import BatchPlan, BucketSampler, SampleIndex
from odvae.running.distributed import uses_cuda
from odvae.running.errors import InputError
from odvae.running.failures import Failures
from odvae.running.seeds import derive_seed
from odvae.running.stop_signals import leave_stop_signals_to_parent, stop_signals_blocked
from odvae.shards.samples import Sample
from odvae.storage.paths import StorageError

# Batches whose entries are fetched from disk in advance.
_PREFETCHED_BATCHES = 8

# Entries that are tried in place of one that cannot be read, each of which cannot be read either.
_MOST_ATTEMPTS = 100

# An entry, its text where that is in shards of its own, and the index of its class.
_Found = tuple[Sample, Sample | None, int]

# A batch, and the name and reason of each entry that could not be read; or why the storage could not be read at all.
_Loaded = tuple[dict[str, Tensor], list[tuple[str, str]]] | StorageError


def entry_failures(latents: LatentSet, share: float, prints: bool = True) -> Failures:
    """A record of training entries that cannot be read, at most the share `share` (`data.failures_allowed`) of all."""
    return Failures(sum(map(len, latents.train.values())), share, "training entries", prints)


def latent_batches(
    latents: LatentSet,
    seed: int,
    plan: BatchPlan,
    start_step: int = 0,
    workers: int = 0,
    failures: Failures | None = None,
    order: SampleOrder = SampleOrder(),  # noqa: B008 - frozen
    batch_sizes: Mapping[str, int] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Endless training batches of one rank from step `start_step` on, as from `load_entries`.

    All batches of a step, on every rank, are of one bucket, so that they have one shape. Bucket, entries and order are
    functions of (seed, step) and `order`: a resumed run continues with the next ones, also with another number of
    ranks, accumulation steps and batch size of the same product. `batch_sizes` has the samples per micro-step and rank
    of each bucket; None: those of `plan`.

    An entry that cannot be read, or is not what was indexed, or not of the manifest's shapes and data type or not
    finite, is added to `failures` and replaced by another one of its bucket, a function of the sample's number, so that
    this is the same for any ranks and workers. Raises InputError after more failures than are allowed; without
    `failures`, after the first. Raises StorageError where latents at a URL cannot be reached: none is replaced for
    that.
    """
    failures = entry_failures(latents, 0.0) if failures is None else failures
    filled = {name: entries for name, entries in latents.train.items() if len(entries)}
    buckets = list(filled.values())
    sizes = None if batch_sizes is None else [batch_sizes[name] for name in filled]
    sampler = BucketSampler([len(entries) for entries in buckets], seed, plan, start_step, sizes)
    batches = IndexedBatches(buckets, latents.classes, seed, order)
    loader = DataLoader(
        batches,
        sampler=_Prefetcher(sampler, batches),  # it yields lists of sample indices
        batch_size=None,  # each list is a batch
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=uses_cuda(),
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if workers else None,
    )
    with stop_signals_blocked():
        return _without_failures(iter(loader), failures)


def _without_failures(loaded: Iterator[_Loaded], failures: Failures) -> Iterator[dict[str, Tensor]]:
    for found in loaded:
        if isinstance(found, StorageError):
            raise found
        batch, failed = found
        for name, reason in failed:
            failures.add(name, reason)
        yield batch


class IndexedBatches(Dataset):
    """Maps a list of sample indices from one bucket to their batch."""

    def __init__(self, buckets: Sequence[LatentEntries], classes: list[str], seed: int, order: SampleOrder) -> None:
        self.buckets, self.classes, self.seed, self.order = buckets, classes, seed, order

    def __getitem__(self, indices: list[tuple[SampleIndex, _Found | None]]) -> _Loaded:
        failed: list[tuple[str, str]] = []
        try:
            entries, loaded = zip(
                *(self._load(sample_index, found, failed) for sample_index, found in indices), strict=True
            )
        except StorageError as error:
            return error  # raised in a worker, it would come with the worker's traceback in its message
        return collate_entries(loaded, entries, [sample_index.number for sample_index, _ in indices]), failed

    def find(self, sample_index: SampleIndex, attempt: int) -> _Found:
        """The entry of an index, with its text and its class's index; attempts above 0 give replacements for one that
        cannot be read. Raises InputError that names an entry which cannot be used."""
        bucket = self.buckets[sample_index.bucket]
        index, row = bucket.folder_index, bucket.rows[self._position(sample_index, attempt)]
        entry = index.sample(row)
        if problem := index.problem(row):
            raise InputError(f"{entry.name}{problem}")
        text = None if bucket.text_index is None else text_at(bucket.text_index, row, entry)
        return entry, text, label_index(index.label(row), self.classes, entry)

    def _position(self, sample_index: SampleIndex, attempt: int) -> int:
        count = len(self.buckets[sample_index.bucket])
        if attempt == 0:
            return self.order.index(sample_index.index, count, self.seed)
        return derive_seed(self.seed, "replacement", sample_index.number, attempt) % count

    def _load(
        self, sample_index: SampleIndex, found: _Found | None, failed: list[tuple[str, str]]
    ) -> tuple[Sample, dict[str, Tensor]]:
        for attempt in range(_MOST_ATTEMPTS):
            try:
                entry, text, label = found if found is not None and attempt == 0 else self.find(sample_index, attempt)
                form = self.buckets[sample_index.bucket].form
                return entry, load_tensors(entry, sample_index.number, label, self.seed, form, text)
            except StorageError:
                raise
            except InputError as error:
                failed.append((self._name(sample_index, attempt), str(error)))
        raise InputError(
            f"none of {_MOST_ATTEMPTS} entries that were tried can be read:\n"
            + "\n".join(f"  {reason}" for _, reason in failed[:10])
        )

    def _name(self, sample_index: SampleIndex, attempt: int) -> str:
        """The name of an index's entry; of a damaged row, its number."""
        bucket = self.buckets[sample_index.bucket]
        row = bucket.rows[self._position(sample_index, attempt)]
        try:
            return bucket.folder_index.sample(row).name
        except InputError:
            return f"{bucket.folder_index.path}, row {row}"


class _Prefetcher:
    """The sampler's indices and what `find` gives for them, with the entries of the next batches prefetched from disk.

    Entries are read in random order, so without prefetching every read would wait for the disk.
    """

    def __init__(self, sampler: BucketSampler, batches: IndexedBatches) -> None:
        self.sampler, self.batches = sampler, batches

    def __iter__(self) -> Iterator[list[tuple[SampleIndex, _Found | None]]]:
        coming: deque[list[tuple[SampleIndex, _Found | None]]] = deque()
        for indices in self.sampler:
            coming.append([(sample_index, self._prefetched(sample_index)) for sample_index in indices])
            if len(coming) > _PREFETCHED_BATCHES:
                yield coming.popleft()

    def _prefetched(self, sample_index: SampleIndex) -> _Found | None:
        """The entry of an index; None where it cannot be used, of which loading it says more."""
        try:
            found = self.batches.find(sample_index, attempt=0)
            for sample in found[:2]:
                if sample is not None:
                    sample.prefetch()
        except (OSError, InputError):
            return None
        return found


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    leave_stop_signals_to_parent()
