"""Latent shards: `KEY.safetensors` (mean, std, text, text_mask) and `KEY.json` in WebDataset tars.

KEY.json has caption, source (the video's key), start, label (class name or null), flip, frames and fps. Where a video
has several captions, `captions` lists them, and `KEY.text1.safetensors`, `KEY.text2.safetensors`, ... (text, text_mask)
are the embeddings of the others, so that a reader reads only the one it needs. An embedding is stored without the rows
of padding, in which its mask is False: a reader puts them back, as zeros. With `encode.text=separate` all of this is in
shards of its own (`ldm.latents.text_manifest`), and an entry has neither text nor caption. A folder of latent shards
has a manifest (`ldm.latents.manifest`); its entries are grouped in buckets, one for each clip size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from odvae.running.errors import InputError
from odvae.running.files import parse_json
from odvae.running.seeds import derive_seed
from odvae.running.text import decode_text
from odvae.shards.samples import Sample

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EntryForm:
    """What the tensors of a bucket's entries are, by the manifest."""

    latents: tuple[int, ...]
    """(c, k, h, w)"""
    text: tuple[int, int] | None
    """(m, d); None: no text is read"""
    dtype: torch.dtype
    has_std: bool
    text_dtype: torch.dtype

    def check(self, tensors: Mapping[str, Tensor], name: str) -> None:
        """Raise InputError unless the tensors of the entry `name` (text with padding) are so, all values finite."""
        expected: dict[str, tuple[int, ...]] = {"mean": self.latents}
        if self.has_std:
            expected["std"] = self.latents
        if self.text is not None:
            expected |= {"text": self.text, "text_mask": self.text[:1]}
        found = {key: tuple(tensors[key].shape) for key in expected if key in tensors}
        if found != expected or (not self.has_std and "std" in tensors):
            have = {key: tuple(tensors[key].shape) for key in _STORED if key in tensors}
            raise InputError(f"{name} has tensors of shapes {have}, by the manifest they are {expected}")
        for key, tensor in tensors.items():
            if not tensor.is_floating_point():
                continue
            dtype = self.text_dtype if key == "text" else self.dtype
            if tensor.dtype != dtype:
                raise InputError(f"{name}.safetensors: {key} is {tensor.dtype}, by the manifest {dtype}")
            if not np.isfinite(tensor.sum(dtype=torch.float32).numpy()):  # one that is not makes the sum so
                raise InputError(f"{name}.safetensors: {key} has values that are not finite")


_STORED = ("mean", "std", "text", "text_mask")


def pack_entry(
    mean: Tensor, std: Tensor | None, text: Tensor | None, text_mask: Tensor | None, dtype: torch.dtype
) -> bytes:
    """One clip's latents (c, k, h, w), text embedding (m, d) and mask (m,) as safetensors bytes.

    `std` None: the mean alone is stored. `text` None: it is in shards of its own. Of the embedding, the rows where the
    mask is True are stored.
    """
    tensors = {"mean": mean.to(dtype)}
    if text is not None and text_mask is not None:
        tensors |= {"text": text[text_mask].to(dtype), "text_mask": text_mask}
    if std is not None:
        tensors["std"] = std.to(dtype)
    return save_safetensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def pack_text(text: Tensor, text_mask: Tensor, dtype: torch.dtype) -> bytes:
    """A further caption's embedding (m, d) and mask (m,), as safetensors bytes, without padding as in `pack_entry`."""
    tensors = {"text": text[text_mask].to(dtype), "text_mask": text_mask}
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
    """Raise InputError unless there are an embedding `text` and its mask `text_mask` (m,): all rows, (m, d), or those
    where the mask is True."""
    text, mask = tensors.get("text"), tensors.get("text_mask")
    if text is None or mask is None or not text.is_floating_point() or mask.dtype != torch.bool:
        raise InputError(f"{name}.safetensors must have the tensors text, of floats, and text_mask, of booleans")
    if text.ndim != 2 or mask.ndim != 1 or len(text) not in (len(mask), np.count_nonzero(mask)):
        raise InputError(
            f"{name}.safetensors: text {tuple(text.shape)} and text_mask {tuple(mask.shape)} have incompatible shapes"
        )


def pad_text(text: Tensor, mask: Tensor) -> Tensor:
    """The embedding (m, d) with zeros where the mask (m,) is False, of one stored with or without its padding."""
    if len(text) == len(mask):
        return text.masked_fill(~mask[:, None], 0)
    padded = text.new_zeros(len(mask), text.shape[1])
    return padded.index_copy(0, torch.from_numpy(np.flatnonzero(mask)), text)


def _check_entry(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise InputError unless `mean`, and `std` if it is there, are as from `pack_entry`."""
    mean = tensors.get("mean")
    std = tensors.get("std", mean)
    if mean is None or std is None or not (mean.is_floating_point() and std.is_floating_point()):
        raise InputError(f"{name}.safetensors must have the tensor mean, and may have std, both of floats")
    if mean.ndim != 4 or std.shape != mean.shape:
        raise InputError(
            f"{name}.safetensors: mean {tuple(mean.shape)} and std {tuple(std.shape)} must be (c, k, h, w)"
        )


def read_about(data: bytes, name: str) -> dict[str, Any]:
    """An entry's .json. Raises InputError where it is no object."""
    about = parse_json(decode_text(data, f"{name}.json"), f"{name}.json")
    if not isinstance(about, dict):
        raise InputError(f"{name}.json: expected an object, found {type(about).__name__}")
    return about


def entry_rate(entry: Sample) -> float | None:
    """Frames per second of an entry's clip; None where its .json does not say. Raises InputError where it is broken."""
    rate = read_about(entry.read("json"), entry.name).get("fps")
    if rate is not None and not (isinstance(rate, int | float) and 0 < rate < 1e6):
        raise InputError(f"{entry.name}.json: fps is {rate!r:.100}, not a number of frames per second")
    return rate


def label_index(label: object, classes: Sequence[str], entry: Sample) -> int:
    """The index of an entry's class, -1 for none."""
    if label is not None and label not in classes:
        raise InputError(
            f"{entry.name}.json: label {label!r:.100} is not one of the {len(classes)} classes in the manifest"
        )
    return -1 if label is None else classes.index(label)


def load_entries(
    entries: Sequence[Sample],
    numbers: Sequence[int],
    classes: Sequence[str],
    seed: int | None = None,
    form: EntryForm | None = None,
    texts: Sequence[Sample] | None = None,
) -> dict[str, Tensor]:
    """A batch of encoded clips of one size, in float32.

    mean, std: (b, c, k, h, w); std is 0 where only means were stored. text: (b, m, d). text_mask: (b, m) bool.
    label: (b,), a clip's class as index in `classes`, -1 for none. number: (b,), the given `numbers` of the samples.
    The text of a clip with several captions is one of them, a function of (seed, number); without a seed, the first.
    `texts` are the samples with their text, where it is in shards of its own. Raises InputError that names the entry
    where one cannot be read, is not what was indexed, or has not this `form`.
    """
    loaded = []
    for i, (entry, number) in enumerate(zip(entries, numbers, strict=True)):
        label = label_index(read_about(_read(entry, "json"), entry.name).get("label"), classes, entry)
        loaded.append(load_tensors(entry, number, label, seed, form, None if texts is None else texts[i]))
    return collate_entries(loaded, entries, numbers)


def load_tensors(
    entry: Sample,
    number: int,
    label: int,
    seed: int | None = None,
    form: EntryForm | None = None,
    text: Sample | None = None,
) -> dict[str, Tensor]:
    """The tensors of an entry, as stored, with its `label`: one sample of `load_entries`, which raises its errors."""
    tensors = dict(unpack_entry(_read(entry, "safetensors"), entry.name))
    if form is not None and form.text is None:
        tensors = {key: tensor for key, tensor in tensors.items() if key in ("mean", "std")}
    else:
        tensors |= _text_of(tensors, entry, text, number, seed)
    _check_entry(tensors, entry.name)
    stored = {key: tensors[key] for key in _STORED if key in tensors}
    if form is not None:
        form.check(stored, entry.name)
    return stored | {"label": torch.tensor(label)}


def _text_of(
    tensors: Mapping[str, Tensor], entry: Sample, text: Sample | None, number: int, seed: int | None
) -> dict[str, Tensor]:
    """The embedding, with padding, and the mask of one of the entry's captions."""
    source = entry if text is None else text
    caption = 0 if seed is None else derive_seed(seed, "caption", number) % caption_count(source)
    name, found = source.name, tensors
    if caption:
        name = f"{source.name}.{text_member(caption).partition('.')[0]}"
        found = unpack_entry(_read(source, text_member(caption)), name)
    elif text is not None:
        found = unpack_entry(_read(source, "safetensors"), name)
    check_text(found, name)
    return {"text": pad_text(found["text"], found["text_mask"]), "text_mask": found["text_mask"]}


def collate_entries(
    loaded: Sequence[Mapping[str, Tensor]], entries: Sequence[Sample], numbers: Sequence[int]
) -> dict[str, Tensor]:
    """The batch, as from `load_entries`, of the loaded tensors of some entries."""
    _check_alike(loaded, entries)
    batch = {name: torch.stack([tensors[name] for tensors in loaded]) for name in loaded[0]}
    batch = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    batch.setdefault("std", torch.zeros_like(batch["mean"]))
    batch["number"] = torch.tensor(list(numbers))
    return batch


def _read(entry: Sample, member: str) -> bytes:
    try:
        return entry.read(member)
    except OSError as error:
        raise InputError(f"{entry.name}.{member} cannot be read: {error.strerror}") from None


def _check_alike(loaded: Sequence[Mapping[str, Tensor]], entries: Sequence[Sample]) -> None:
    """Raise InputError where the tensors of two entries are of different shapes, or one lacks a std."""
    shapes = [{key: tuple(tensor.shape) for key, tensor in tensors.items()} for tensors in loaded]
    for one, entry in zip(shapes, entries, strict=True):
        if one != shapes[0]:
            raise InputError(f"{entry.name} has tensors of shapes {one}, {entries[0].name} of {shapes[0]}")


def load_entry(entry: Sample, number: int, classes: Sequence[str]) -> dict[str, Any]:
    """One encoded clip, as a sample of `load_entries`."""
    return {name: tensor[0] for name, tensor in load_entries([entry], [number], classes).items()}


def entry_key(video_key: str, clip: int, flip: bool = False) -> str:
    """The key of the clip with index `clip` of a video, or of its mirror image."""
    return f"{video_key}-{clip:03d}{'f' if flip else ''}"


def source_key(entry_key: str) -> str:
    """The key of the video that the entry with this key was encoded from; all its clips are in the same split."""
    return entry_key.rpartition("-")[0]
