"""Latent shards: `KEY.safetensors` (mean, std, text, text_mask) and `KEY.json` in WebDataset tars.

KEY.json has caption, source (the video's key), start, label (class name or null), flip, frames and fps. Where a video
has several captions, `captions` lists them, and `KEY.text1.safetensors`, `KEY.text2.safetensors`, ... (text, text_mask)
are the embeddings of the others, so that a reader reads only the one it needs. A folder of latent shards has a manifest
(`ldm.latents.manifest`); its entries are grouped in buckets, one for each clip size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.latents.manifest import Manifest, encode_command
from odvae.clips.permutation import shuffled_index
from odvae.clips.samplers import BatchPlan, BucketSampler, SampleIndex
from odvae.clips.video_set import is_held_out
from odvae.running.distributed import uses_cuda
from odvae.running.errors import InputError
from odvae.running.files import parse_json
from odvae.running.seeds import derive_seed
from odvae.running.stop_signals import leave_stop_signals_to_parent, stop_signals_blocked
from odvae.running.text import decode_text
from odvae.shards.samples import Sample
from odvae.shards.tars import index_shard

# Batches whose entries are fetched from disk in advance.
_PREFETCHED_BATCHES = 8


def pack_entry(mean: Tensor, std: Tensor | None, text: Tensor, text_mask: Tensor, dtype: torch.dtype) -> bytes:
    """One clip's latents (c, k, h, w), text embedding (m, d) and mask (m,) as safetensors bytes.

    `std` None: the mean alone is stored.
    """
    tensors = {"mean": mean.to(dtype), "text": text.to(dtype), "text_mask": text_mask}
    if std is not None:
        tensors["std"] = std.to(dtype)
    return save_safetensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def pack_text(text: Tensor, text_mask: Tensor, dtype: torch.dtype) -> bytes:
    """A further caption's embedding (m, d) and mask (m,), as safetensors bytes."""
    tensors = {"text": text.to(dtype), "text_mask": text_mask}
    return save_safetensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def text_member(caption: int) -> str:
    """The member with the embedding of caption number `caption`, from 1; that of caption 0 is in `safetensors`."""
    return f"text{caption}.safetensors"


def caption_count(entry: Sample) -> int:
    """Number of caption embeddings of an entry; 1 for a video without captions (the empty text's)."""
    return 1 + sum(name.startswith("text") for name in entry.members)


def unpack_entry(data: bytes, name: str) -> Mapping[str, Tensor]:
    """The tensors of `pack_entry`. Raises InputError with `name` where the bytes cannot be read."""
    try:
        return load_safetensors(data)
    except Exception as error:  # safetensors has errors of several types: KeyError for a type that torch lacks
        raise InputError(f"{name}.safetensors cannot be read: {error}") from None


def check_text(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise InputError unless there are an embedding `text` (m, d) and its mask `text_mask` (m,)."""
    text, mask = tensors.get("text"), tensors.get("text_mask")
    if text is None or mask is None or not text.is_floating_point() or mask.dtype != torch.bool:
        raise InputError(f"{name}.safetensors must have the tensors text, of floats, and text_mask, of booleans")
    if text.ndim != 2 or mask.shape != text.shape[:1]:
        raise InputError(
            f"{name}.safetensors: text {tuple(text.shape)} and text_mask {tuple(mask.shape)} have incompatible shapes"
        )


def _check_entry(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise InputError unless these are the tensors of `pack_entry`."""
    check_text(tensors, name)
    mean = tensors.get("mean")
    std = tensors.get("std", mean)
    if mean is None or std is None or not (mean.is_floating_point() and std.is_floating_point()):
        raise InputError(f"{name}.safetensors must have the tensor mean, and may have std, both of floats")
    if mean.ndim != 4 or std.shape != mean.shape:
        raise InputError(
            f"{name}.safetensors: mean {tuple(mean.shape)} and std {tuple(std.shape)} must be (c, k, h, w)"
        )


def _read_about(data: bytes, name: str) -> dict[str, Any]:
    """An entry's .json. Raises InputError where it is no object."""
    about = parse_json(decode_text(data, f"{name}.json"), f"{name}.json")
    if not isinstance(about, dict):
        raise InputError(f"{name}.json: expected an object, found {type(about).__name__}")
    return about


def entry_rate(entry: Sample) -> float | None:
    """Frames per second of an entry's clip; None where its .json does not say. Raises InputError where it is broken."""
    rate = _read_about(entry.read("json"), entry.name).get("fps")
    if rate is not None and not (isinstance(rate, int | float) and 0 < rate < 1e6):
        raise InputError(f"{entry.name}.json: fps is {rate!r:.100}, not a number of frames per second")
    return rate


def _label_index(data: bytes, classes: Sequence[str], name: str) -> int:
    """The index of an entry's class, -1 for none."""
    label = _read_about(data, name).get("label")
    if label is not None and label not in classes:
        raise InputError(f"{name}.json: label {label!r:.100} is not one of the {len(classes)} classes in the manifest")
    return -1 if label is None else classes.index(label)


def load_entries(
    entries: Sequence[Sample], numbers: Sequence[int], classes: Sequence[str], seed: int | None = None
) -> dict[str, Tensor]:
    """A batch of encoded clips of one size, in float32.

    mean, std: (b, c, k, h, w); std is 0 where only means were stored. text: (b, m, d). text_mask: (b, m) bool.
    label: (b,), a clip's class as index in `classes`, -1 for none. number: (b,), the given `numbers` of the samples.
    The text of a clip with several captions is one of them, a function of (seed, number); without a seed, the first.
    """
    captions = [
        0 if seed is None else derive_seed(seed, "caption", number) % caption_count(entry)
        for entry, number in zip(entries, numbers, strict=True)
    ]
    members = [_read_members(entry, caption) for entry, caption in zip(entries, captions, strict=True)]
    loaded = [_unpack_members(member, entry.name) for member, entry in zip(members, entries, strict=True)]
    _check_alike(loaded, entries)
    batch = {name: torch.stack([tensors[name] for tensors in loaded]) for name in loaded[0]}
    batch = {name: tensor if tensor.dtype == torch.bool else tensor.float() for name, tensor in batch.items()}
    batch.setdefault("std", torch.zeros_like(batch["mean"]))
    labels = [_label_index(member["json"], classes, entry.name) for member, entry in zip(members, entries, strict=True)]
    batch["label"] = torch.tensor(labels)
    batch["number"] = torch.tensor(list(numbers))
    return batch


def _read_members(entry: Sample, caption: int) -> dict[str, bytes]:
    """An entry's members; of the further captions, only the one with index `caption`."""
    needed = ("safetensors", "json", *([text_member(caption)] if caption else []))
    if caption_count(entry) == 1 and entry.members.keys() == set(needed):
        return entry.read_all()
    return {name: entry.read(name) for name in needed}


def _unpack_members(members: dict[str, bytes], name: str) -> Mapping[str, Tensor]:
    tensors = dict(unpack_entry(members["safetensors"], name))
    for member in members.keys() - {"safetensors", "json"}:
        further = unpack_entry(members[member], f"{name}.{member.partition('.')[0]}")
        check_text(further, f"{name}.{member.partition('.')[0]}")
        tensors |= {key: further[key] for key in ("text", "text_mask")}
    _check_entry(tensors, name)
    return {key: tensors[key] for key in ("mean", "std", "text", "text_mask") if key in tensors}


def _check_alike(loaded: Sequence[Mapping[str, Tensor]], entries: Sequence[Sample]) -> None:
    """Raise InputError where the tensors of two entries are of different shapes, or one lacks a std."""
    shapes = [{key: tuple(tensor.shape) for key, tensor in tensors.items()} for tensors in loaded]
    for one, entry in zip(shapes, entries, strict=True):
        if one != shapes[0]:
            raise InputError(f"{entry.name} has tensors of shapes {one}, {entries[0].name} of {shapes[0]}")


def load_entry(entry: Sample, number: int, classes: Sequence[str]) -> dict[str, Any]:
    """One encoded clip, as a sample of `load_entries`."""
    return {name: tensor[0] for name, tensor in load_entries([entry], [number], classes).items()}


@dataclass(frozen=True)
class LatentSet:
    """The entries of a latent folder, by split and bucket, and the names of the classes."""

    train: dict[str, list[Sample]]
    held_out: dict[str, list[Sample]]
    classes: list[str]


def open_latents(folder: Path, manifest: Manifest) -> LatentSet:
    """Index the entries of a latent folder. Raises InputError where their numbers differ from the manifest's."""
    train: dict[str, list[Sample]] = {name: [] for name in manifest.buckets}
    held_out: dict[str, list[Sample]] = {name: [] for name in manifest.buckets}
    for record in manifest.shards:
        for entry in index_shard(folder / record.name):
            split = held_out if is_held_out(source_key(entry), manifest.held_out) else train
            split[record.bucket].append(entry)
    counts = tuple(sum(len(entries) for entries in split.values()) for split in (train, held_out))
    if counts != (manifest.train_entries, manifest.held_out_entries):
        raise InputError(
            f"{folder} holds {counts[0]} training and {counts[1]} held-out entries, but its manifest lists "
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
    """Endless training batches of one rank from step `start_step` on, as from `load_entries`.

    All batches of a step, on every rank, are of one bucket, so that they have one shape. Bucket, entries and order are
    functions of (seed, step): a resumed run continues with the next ones, also with another number of ranks,
    accumulation steps and batch size of the same product.
    """
    buckets = [entries for entries in latents.train.values() if entries]
    sampler = BucketSampler([len(entries) for entries in buckets], seed, plan, start_step)
    batches = _DrawnBatches(buckets, latents.classes, seed)
    loader = DataLoader(
        batches,
        sampler=_Prefetcher(sampler, batches),  # it yields lists of draws
        batch_size=None,  # each list of draws is a batch
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=uses_cuda(),
        worker_init_fn=_start_worker,
    )
    with stop_signals_blocked():
        return iter(loader)


def held_out_batches(latents: LatentSet, batch_size: int, rank: int, ranks: int) -> Iterator[dict[str, Tensor]]:
    """This rank's share of the held-out entries, in batches of one bucket; `number` is the entry's index among all."""
    numbered, first = [], 0
    for entries in latents.held_out.values():
        numbered.append(list(enumerate(entries, start=first)))
        first += len(entries)
    for bucket in numbered:
        mine = bucket[rank::ranks]
        for i in range(0, len(mine), batch_size):
            numbers, chosen = zip(*mine[i : i + batch_size], strict=True)
            yield load_entries(chosen, numbers, latents.classes)


class _DrawnBatches(Dataset):
    """Maps a list of draws from one bucket to their batch."""

    def __init__(self, buckets: list[list[Sample]], classes: list[str], seed: int) -> None:
        self.buckets, self.classes, self.seed = buckets, classes, seed

    def __getitem__(self, draws: list[SampleIndex]) -> dict[str, Tensor]:
        return load_entries(self.chosen(draws), [draw.number for draw in draws], self.classes, self.seed)

    def chosen(self, draws: list[SampleIndex]) -> list[Sample]:
        entries = self.buckets[draws[0].bucket]
        return [entries[shuffled_index(draw.index, len(entries), self.seed)] for draw in draws]


class _Prefetcher:
    """The sampler's draws, with those of the next batches prefetched from disk.

    Entries are read in random order, so without prefetching every read would wait for the disk.
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
    """The key of the clip with index `clip` of a video, or of its mirror image."""
    return f"{video_key}-{clip:03d}{'f' if flip else ''}"


def source_key(entry: Sample) -> str:
    """The key of the video that an entry was encoded from; all its clips are in the same split."""
    return entry.key.rpartition("-")[0]
