"""Latent shards: `KEY.safetensors` (mean, std, text, text_mask) and `KEY.json` in WebDataset tars, plus manifest.json.

The manifest says what the latents are: of which VAE, which clips, which text encoder, how many, and their statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.utils.data import Dataset

from odvae.shared.clips import is_held_out
from odvae.shared.errors import InputError
from odvae.shared.run_folder import read_json, write_json
from odvae.shared.seeds import shuffled_index
from odvae.shared.shards import Sample, index_shards

FORMAT = 1
MANIFEST = "manifest.json"
ENCODE_COMMAND = "accelerate launch pipelines/encode_latents.py (with this experiment's --config)"


@dataclass(frozen=True)
class ShardRecord:
    """One latent shard, its hash and count, and the video shard it was encoded from."""

    name: str
    sha256: str
    entries: int
    source: str
    source_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of latents is: `manifest.json`."""

    vae_sha256: str
    vae_config: dict[str, Any]
    text_encoder: str
    text_sha256: str
    text_width: int
    text_tokens: int
    data: dict[str, Any]
    resize: str
    clips_per_video: int
    dtype: str
    held_out: float
    shape: tuple[int, int, int, int]
    train_entries: int
    held_out_entries: int
    latents_mean: list[float]
    latents_std: list[float]
    shards: list[ShardRecord]
    code: dict[str, str]
    classes: list[str] = field(default_factory=list)
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        write_json(folder / MANIFEST, asdict(self))


def load_manifest(folder: Path) -> Manifest:
    """Read a latent folder's manifest. Raises InputError when there is none (the encoding did not finish)."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: the latents are not (completely) encoded; make them with: {ENCODE_COMMAND}"
        )
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise InputError(f"{path}: format {values.get('format')!r}, this version reads {FORMAT}")
    names = {item.name for item in fields(Manifest)}
    if values.keys() != names:
        raise InputError(f"{path}: keys differ: {', '.join(sorted(values.keys() ^ names))}")
    values["shape"] = tuple(values["shape"])
    values["shards"] = [ShardRecord(**record) for record in values["shards"]]
    return Manifest(**values)


def check_latents(folder: Path, manifest: Manifest, vae_sha256: str, vae_folder: Path) -> None:
    """Refuse latents that another VAE made, or whose shards are missing. Says which field differs and what to run."""
    if manifest.vae_sha256 != vae_sha256:
        raise InputError(
            f"{folder} was encoded by another VAE: its manifest's vae_sha256 is {manifest.vae_sha256[:16]}..., that of "
            f"{vae_folder} is {vae_sha256[:16]}...; remove {folder} and run: {ENCODE_COMMAND}"
        )
    for record in manifest.shards:
        if not (folder / record.name).is_file():
            raise InputError(f"{folder / record.name} is missing, but the manifest lists it; run: {ENCODE_COMMAND}")


def pack_entry(
    posterior_mean: Tensor, posterior_std: Tensor, text: Tensor, text_mask: Tensor, dtype: torch.dtype
) -> bytes:
    """One clip's latents (c, k, h, w) and text (m, d), mask (m,), as safetensors bytes."""
    tensors = {
        "mean": posterior_mean.to(dtype),
        "std": posterior_std.to(dtype),
        "text": text.to(dtype),
        "text_mask": text_mask,
    }
    return save_safetensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def unpack_entry(data: bytes, name: str) -> Mapping[str, Tensor]:
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise InputError(f"{name}.safetensors cannot be read: {error}") from None


def load_entry(entry: Sample, number: int) -> dict[str, Any]:
    """One encoded clip in float32: mean, std (c, k, h, w), text (m, d), text_mask (m,) bool, label, number."""
    tensors = unpack_entry(entry.read("safetensors"), entry.name)
    floats = {name: tensor.float() for name, tensor in tensors.items() if name != "text_mask"}
    label = entry.read_json().get("label", -1)
    return {**floats, "text_mask": tensors["text_mask"], "label": label, "number": number}


class LatentDataset(Dataset):
    """Sample number n -> one encoded clip as `load_entry` gives it. Infinite; which entry n is depends on (seed, n)."""

    def __init__(self, entries: Sequence[Sample], seed: int) -> None:
        self.entries, self.seed = list(entries), seed

    def __getitem__(self, number: int) -> dict[str, Any]:
        return load_entry(self.entries[shuffled_index(number, len(self.entries), self.seed)], number)


def open_latents(folder: Path, manifest: Manifest) -> tuple[list[Sample], list[Sample]]:
    """The (training, held-out) entries of a latent folder."""
    entries = index_shards([folder / record.name for record in manifest.shards])
    train = [entry for entry in entries if not is_held_out(source_key(entry), manifest.held_out)]
    held_out = [entry for entry in entries if is_held_out(source_key(entry), manifest.held_out)]
    if (len(train), len(held_out)) != (manifest.train_entries, manifest.held_out_entries):
        raise InputError(
            f"{folder} holds {len(train)} training and {len(held_out)} held-out entries, its manifest says "
            f"{manifest.train_entries} and {manifest.held_out_entries}; run: {ENCODE_COMMAND}"
        )
    return train, held_out


def entry_key(video_key: str, clip: int) -> str:
    """The key of clip number `clip` of a video."""
    return f"{video_key}-{clip:03d}"


def source_key(entry: Sample) -> str:
    """The key of the video an entry was encoded from: all its clips are in the same split."""
    return entry.key.rpartition("-")[0]
