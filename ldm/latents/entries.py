"""Latent shards: `KEY.safetensors` (mean, std, text, text_mask) and `KEY.json` in WebDataset tars.

KEY.json holds caption, source (the video's key), start, label (class name or null), flip and frames. A folder of them
has a manifest (`ldm.latents.manifest`); its entries are grouped in buckets, one for each size of clip.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.latents.manifest import Manifest, encode_command
from odvae.clips.sampling import BatchPlan, BucketSampler, SampleIndex
from odvae.clips.video_set import is_held_out
from odvae.running.distributed import uses_cuda
from odvae.running.errors import InputError
from odvae.running.seeds import shuffled_index
from odvae.running.stop_signals import leave_stop_signals_to_parent
from odvae.shards.samples import Sample
from odvae.shards.tars import index_shard

# Batches of entries that are fetched from disk ahead of their use.
_PREFETCHED_BATCHES = 8


def pack_entry(mean: Tensor, std: Tensor | None, text: Tensor, text_mask: Tensor, dtype: torch.dtype) -> bytes:
    """One clip's latents (c, k, h, w) and text (m, d), mask (m,), as safetensors bytes; std None: the mean alone."""
    tensors = {"mean": mean.to(dtype), "text": text.to(dtype), "text_mask": text_mask}
    if std is not None:
        tensors["std"] = std.to(dtype)
    return save_safetensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def unpack_entry(data: bytes, name: str) -> Mapping[str, Tensor]:
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise InputError(f"{name}.safetensors cannot be read: {error}") from None


def load_entries(entries: Sequence[Sample], numbers: Sequence[int], classes: Sequence[str]) -> dict[str, Tensor]:
    """Encoded clips of one size, in float32: mean, std (b, c, k, h, w), text (b, m, d), text_mask (b, m) bool.

    std is 0 where only means were stored. label (b,) is the place in `classes` of a clip's class, -1 where it has
    none; number (b,) repeats `numbers`.
    """
    members = [entry.read_all() for entry in entries]
    loaded = [unpack_entry(member["safetensors"], entry.name) for member, entry in zip(members, entries, strict=True)]
    batch = {name: torch.stack([tensors[name] for tensors in loaded]) for name in loaded[0]}
    batch = {name: tensor if tensor.dtype == torch.bool else tensor.float() for name, tensor in batch.items()}
    batch.setdefault("std", torch.zeros_like(batch["mean"]))
    labels = [json.loads(member["json"])["label"] for member in members]
    batch["label"] = torch.tensor([-1 if label is None else classes.index(label) for label in labels])
    batch["number"] = torch.tensor(list(numbers))
    return batch


def load_entry(entry: Sample, number: int, classes: Sequence[str]) -> dict[str, Any]:
    """One encoded clip, as a row of `load_entries`."""
    return {name: tensor[0] for name, tensor in load_entries([entry], [number], classes).items()}


@dataclass(frozen=True)
class LatentSet:
    """The entries of a latent folder by split and bucket, and the names of their classes."""

    train: dict[str, list[Sample]]
    held_out: dict[str, list[Sample]]
    classes: list[str]


def open_latents(folder: Path, manifest: Manifest) -> LatentSet:
    """The entries of a latent folder. Raises InputError where they are not as many as its manifest says."""
    train: dict[str, list[Sample]] = {name: [] for name in manifest.buckets}
    held_out: dict[str, list[Sample]] = {name: [] for name in manifest.buckets}
    for record in manifest.shards:
        for entry in index_shard(folder / record.name):
            split = held_out if is_held_out(source_key(entry), manifest.held_out) else train
            split[record.bucket].append(entry)
    counts = tuple(sum(len(entries) for entries in split.values()) for split in (train, held_out))
    if counts != (manifest.train_entries, manifest.held_out_entries):
        raise InputError(
            f"{folder} holds {counts[0]} training and {counts[1]} held-out entries, its manifest says "
            f"{manifest.train_entries} and {manifest.held_out_entries}; run: {encode_command()}"
        )
    return LatentSet(train, held_out, manifest.classes)


def latent_batches(
    latents: LatentSet,
    seed: int,
    plan: BatchPlan,
    start_step: int = 0,
    workers: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Training batches of one rank from step `start_step` on, without end, as `load_entries` gives them.

    All batches of a step, on every rank, are of one bucket, so that they have one shape. Which bucket, which entries
    and their order follow from (seed, step): a resumed run goes on with the very next ones, and so does a run with
    other ranks, accumulation and batch size of the same product.
    """
    buckets = [entries for entries in latents.train.values() if entries]
    sampler = BucketSampler([len(entries) for entries in buckets], seed, plan, start_step)
    batches = _DrawnBatches(buckets, latents.classes, seed)
    loader = DataLoader(
        batches,
        sampler=_Prefetcher(sampler, batches),  # type: ignore[arg-type] - it yields lists of draws
        batch_size=None,  # a draw list is a batch
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=uses_cuda(),
        worker_init_fn=_start_worker,
    )
    return iter(loader)


def held_out_batches(latents: LatentSet, batch_size: int, rank: int, ranks: int) -> Iterator[dict[str, Tensor]]:
    """Every held-out entry once, each rank its share, in batches of one bucket; `number` counts them all."""
    numbered, first = [], 0
    for entries in latents.held_out.values():
        numbered.append(list(enumerate(entries, start=first)))
        first += len(entries)
    for bucket in numbered:
        mine = bucket[rank::ranks]
        for i in range(0, len(mine), batch_size):
            numbers, entries = zip(*mine[i : i + batch_size], strict=True)
            yield load_entries(entries, numbers, latents.classes)


class _DrawnBatches(Dataset):
    """A list of draws of one bucket -> their batch."""

    def __init__(self, buckets: list[list[Sample]], classes: list[str], seed: int) -> None:
        self.buckets, self.classes, self.seed = buckets, classes, seed

    def __getitem__(self, draws: list[SampleIndex]) -> dict[str, Tensor]:
        return load_entries(self.chosen(draws), [draw.number for draw in draws], self.classes)

    def chosen(self, draws: list[SampleIndex]) -> list[Sample]:
        entries = self.buckets[draws[0].bucket]
        return [entries[shuffled_index(draw.index, len(entries), self.seed)] for draw in draws]


class _Prefetcher:
    """The sampler's draws; those of the next batches are being fetched from disk when a batch is asked for.

    Entries lie in no order, so one read at a time would wait for the disk each time.
    """

    def __init__(self, sampler: BucketSampler, batches: _DrawnBatches) -> None:
        self.sampler, self.batches = sampler, batches

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        coming: deque[list[SampleIndex]] = deque()
        for draws in self.sampler:
            for entry in self.batches.chosen(draws):
                entry.prefetch()
            coming.append(draws)
            if len(coming) > _PREFETCHED_BATCHES:
                yield coming.popleft()


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    leave_stop_signals_to_parent()


def entry_key(video_key: str, clip: int, flip: bool = False) -> str:
    """The key of clip number `clip` of a video, or of its mirror image."""
    return f"{video_key}-{clip:03d}{'f' if flip else ''}"


def source_key(entry: Sample) -> str:
    """The key of the video an entry was encoded from: all its clips are in the same split."""
    return entry.key.rpartition("-")[0]
