"""Folders of latents: entries, manifest, and the other files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import torch

from ldm.diffusion.settings import ObjectiveSettings
from ldm.encoding.verified_files import VERIFIED
from ldm.encoding.verify import find_problems
from ldm.fuzzing.containers import SAFETENSORS
from ldm.fuzzing.kind import Kind, NeighborLost, Valid
from ldm.fuzzing.mutations import BYTES, JSON, JSON_LINES
from ldm.fuzzing.shards import tar_bytes
from ldm.latents.batches import latent_batches
from ldm.latents.entries import load_entries, pack_entry, pack_text, source_key
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import EMPTY_TEXT, MANIFEST, Manifest, ShardRecord, check_latents, load_manifest
from ldm.networks.provenance import PROVENANCE, Provenance
from ldm.networks.settings import ConditioningSettings, DiTSettings
from ldm.train import account_of, check_trainable, latents_identity, new_network
from ldm.training.diffusion_batches import LatentData
from ldm.training.settings import LDMSettings
from odvae.clips.samplers import BatchPlan
from odvae.clips.settings import DataSettings
from odvae.index.building import INDEX
from odvae.running.files import write_json
from odvae.running.hashing import file_fingerprint
from odvae.shards.facts_journal import INDEX_FOLDER
from odvae.shards.tars import index_shard

_SHAPE, _TOKENS, _WIDTH = (4, 2, 4, 4), 3, 16
_SHARD, _VAE_SHA256 = "00000.tar", "f" * 64
_SHARD_INDEX = f"{INDEX_FOLDER}/{_SHARD}.arrow"
_CONFIG = {"_class_name": "ODVAE", "latent_channels": 4, "norm": "frame"}
# Sources of entries: of these, the first two are in training and the others are held out.
_SOURCES = ("neighbor0", "neighbor1", "neighbor2", "mutated")


def _entry(source: str) -> dict[str, bytes]:
    rng = torch.Generator().manual_seed(len(source))
    mean, text = torch.randn(_SHAPE, generator=rng), torch.randn(_TOKENS, _WIDTH, generator=rng)
    mask = torch.ones(_TOKENS, dtype=torch.bool)
    about = {"caption": "one", "captions": ["one", "two"], "source": source, "start": 0, "label": "a", "flip": False}
    return {
        "safetensors": pack_entry(mean, mean.abs(), text, mask, torch.bfloat16),
        "json": json.dumps(about | {"frames": 5, "fps": 8.0}).encode(),
        "text1.safetensors": pack_text(text, mask, torch.bfloat16),
    }


def _write_latents(folder: Path) -> Manifest:
    """A small folder of latents, and the folder of a VAE, as far as it is read."""
    (folder / _SHARD).write_bytes(tar_bytes({f"{source}-000": _entry(source) for source in _SOURCES}))
    (folder / EMPTY_TEXT).write_bytes(
        pack_text(torch.zeros(_TOKENS, _WIDTH), torch.ones(_TOKENS, dtype=torch.bool), torch.bfloat16)
    )
    record = ShardRecord(
        name=_SHARD,
        sha256=file_fingerprint(folder / _SHARD),
        bytes=(folder / _SHARD).stat().st_size,
        entries=len(_SOURCES),
        bucket="5x32x32",
        source="shards/00000.tar",
        source_sha256="0" * 64,
        source_entries=len(_SOURCES),
    )
    manifest = Manifest(
        vae_sha256=_VAE_SHA256,
        vae_config=_CONFIG,
        vae_folder="vae",
        text_encoder="hub/name",
        text_sha256="1" * 64,
        text_width=_WIDTH,
        text_tokens=_TOKENS,
        empty_text_sha256=file_fingerprint(folder / EMPTY_TEXT),
        data=DataSettings(frames=5, height=32, width=32).model_dump(mode="json"),
        resize="cover",
        clips_per_video=1,
        flip=False,
        posterior="moments",
        dtype="bf16",
        held_out=0.5,
        buckets={"5x32x32": _SHAPE},
        train_entries=2,
        held_out_entries=2,
        captioned_entries=4,
        captioned_share=1.0,
        captioned_train_entries=2,
        captions=8,
        classes=["a", "b"],
        entries_by_class={"a": 4, "b": 0},
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        failed={"x": "cannot be decoded"},
        shards=[record],
        code={"version": "0", "commit": "?"},
    )
    manifest.save(folder)
    (folder / "vae").mkdir()
    write_json(folder / "vae/config.json", _CONFIG)
    return manifest


def _make_entries(context: Path) -> Sequence[Valid]:
    _write_latents(context)
    valid = _entry("mutated")
    return [
        Valid("safetensors", valid["safetensors"], SAFETENSORS),
        Valid("text1.safetensors", valid["text1.safetensors"], SAFETENSORS),
        Valid("json", valid["json"], JSON),
    ]


def _read_entry(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """A mutated entry among healthy ones, in batches of training and of validation."""
    samples = {f"{source}-000": _entry(source) for source in _SOURCES}
    samples["mutated-000"][name] = data
    (folder / _SHARD).write_bytes(tar_bytes(samples))
    shutil.copy(context / EMPTY_TEXT, folder)
    manifest = _with_present_hash(load_manifest(context), folder)
    entries = {source_key(entry.key): entry for entry in index_shard(folder / _SHARD)}
    healthy = [entries[source] for source in _SOURCES[:3]]
    if len(load_entries(healthy, [0, 1, 2], manifest.classes, seed=rng.randrange(100))["mean"]) != 3:
        raise NeighborLost("a healthy entry")
    way = rng.randrange(3)
    if way == 0:
        load_entries([*healthy, entries["mutated"]], range(4), manifest.classes, seed=rng.randrange(100))
    elif way == 1:
        load_entries([entries["mutated"]], [0], manifest.classes)
    else:
        _train_on(folder, manifest)


def _with_present_hash(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest of a folder whose shard was encoded with the mutated entry."""
    (record,), shard = manifest.shards, folder / _SHARD
    return replace(manifest, shards=[replace(record, sha256=file_fingerprint(shard), bytes=shard.stat().st_size)])


def _train_on(folder: Path, manifest: Manifest) -> None:
    conditioning = ConditioningSettings(kind="text", first_frame=0.5)
    data = LatentData(folder, manifest, conditioning, ObjectiveSettings(), torch.device("cpu"))
    batches = data.training_batches(BatchPlan(batch_size=3), seed=0)
    for _ in range(2):
        next(batches)
    data.frame_rate()
    for bucket, held_out in data.latents.held_out.items():
        if held_out:
            list(data.validation_batches(data.held_out(bucket, [0])))


def make_manifests(context: Path) -> Sequence[Valid]:
    manifest = _write_latents(context)
    open_latents(context, manifest)  # which writes the index
    list(find_problems(context, manifest))  # which records what it has verified
    Provenance.of_latents(manifest, context, context).save(context)
    return [
        *(Valid(MANIFEST, json.dumps(asdict(manifest)).encode(), JSON) for _ in range(5)),
        Valid(EMPTY_TEXT, (context / EMPTY_TEXT).read_bytes(), SAFETENSORS),
        *(Valid(name, (context / name).read_bytes(), BYTES) for name in (INDEX, _SHARD_INDEX)),
        Valid(VERIFIED, (context / VERIFIED).read_bytes(), JSON_LINES),
        Valid(PROVENANCE, (context / PROVENANCE).read_bytes(), JSON),
        Valid("vae/config.json", (context / "vae/config.json").read_bytes(), JSON),
    ]


def _read_manifest(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """As training does before its first step, and as tools/verify_latents.py does."""
    shutil.copytree(context, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(data)
    if name == PROVENANCE:
        Provenance.load(folder).text_encoder_in(folder)
        return
    if name == _SHARD_INDEX:
        (folder / INDEX).unlink()  # it is merged again
    manifest = load_manifest(folder)
    if name == VERIFIED or (name in (MANIFEST, _SHARD_INDEX) and rng.random() < 0.3):
        list(find_problems(folder, manifest))
        return
    if name != EMPTY_TEXT:
        check_latents(folder, manifest, _VAE_SHA256, folder / "vae")
    kind = rng.choice(("text", "class", "none"))
    settings = LDMSettings(
        dit=DiTSettings(width=32, depth=1, heads=2), conditioning=ConditioningSettings(kind=kind, first_frame=0.5)
    )
    check_trainable(settings, manifest, folder)
    network = new_network(settings, manifest)
    for shape in manifest.buckets.values():
        network.token_grid(torch.empty(1, *shape, device="meta"))
    latents_identity(manifest)
    account_of(manifest, settings.conditioning).table()
    next(iter(latent_batches(open_latents(folder, manifest), 0, BatchPlan(batch_size=2))))
    _train_on(folder, manifest)


ENTRY = Kind("entry", _make_entries, _read_entry, share=20)
MANIFESTS = Kind("manifest", make_manifests, _read_manifest, share=10)
