"""Verification of a latent folder against its manifest: by hashes, and by encoding some entries again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.encoding.encode_shards import encode_pieces
from ldm.encoding.settings import BucketSettings
from ldm.latents.entries import load_entry, source_key
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import EMPTY_TEXT, Manifest, changed_config, changed_hash, resized_files
from ldm.networks.text_encoder import load_text_encoder
from odvae.clips.clip import load_clip
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError
from odvae.running.hashing import file_fingerprint, weights_fingerprint
from odvae.running.progress import progress_over
from odvae.running.seeds import numpy_generator
from odvae.shards.samples import Sample
from odvae.shards.tars import index_shard
from odvae.video.pixels import to_float, to_uint8
from odvae.video_vae import VideoVAE, load_vae

# Allowed relative error of a clip encoded again; 16-bit storage and another batch or device cause 0.3% (measured).
TOLERANCE = 0.02


@dataclass(frozen=True)
class Reencoded:
    """One entry, compared with the same clip encoded again; videos are uint8 (t, h, w, 3)."""

    name: str
    error: float
    """The larger of the relative errors of mean and std."""
    source: np.ndarray
    decoded: np.ndarray


def find_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Differences between the folder and its manifest, one sentence each: hashes, counts, text encoder, source shards.

    Missing source shards are not reported: latents may be copied without their videos.
    """
    broken = list(resized_files(folder, manifest)) or list(_changed_files(folder, manifest))
    yield from broken
    if not broken:
        try:
            open_latents(folder, manifest)
        except InputError as error:
            yield str(error)
    own_encoder = folder / manifest.text_encoder
    if own_encoder.is_dir():
        found = weights_fingerprint(load_text_encoder(own_encoder).model)
        if found != manifest.text_sha256:
            yield f"{own_encoder}: its weights' sha256 is {found[:16]}..., unlike text_sha256 in the manifest"
    expected = {record.source: record.source_sha256 for record in manifest.shards}
    for source, sha256 in expected.items():
        if Path(source).is_file() and file_fingerprint(Path(source)) != sha256:
            yield f"{source} was changed after its latents were encoded: its sha256 is not the manifest's source_sha256"


def _changed_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    expected = {record.name: record.sha256 for record in manifest.shards} | {EMPTY_TEXT: manifest.empty_text_sha256}
    for name in progress_over(list(expected), "checking hashes", unit="file"):
        if (found := file_fingerprint(folder / name)) != expected[name]:
            yield changed_hash(folder / name, found, expected[name])


def reencode(folder: Path, manifest: Manifest, vae_folder: Path, count: int, seed: int) -> Iterator[Reencoded]:
    """Encode `count` random entries again from their source videos, and decode the stored latents.

    Raises InputError where the VAE or a source shard is missing, or the VAE is not the one of the manifest.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = load_vae(vae_folder).to(device)
    found = weights_fingerprint(vae)
    if found != manifest.vae_sha256 or changed_config(manifest, vae_folder):
        raise InputError(f"{vae_folder} holds another VAE ({found[:16]}...) than {folder} was encoded with")
    latents = open_latents(folder, manifest)
    sources = {Path(record.source) for record in manifest.shards}
    if missing := [str(source) for source in sources if not source.is_file()]:
        raise InputError(f"cannot encode again without the source shards: {', '.join(sorted(missing))}")
    videos = {sample.key: sample for source in sources for sample in index_shard(source)}
    entries = [(name, entry) for split in (latents.train, latents.held_out) for name in split for entry in split[name]]
    chosen = numpy_generator(seed, "verify").permutation(len(entries))[:count]
    for i in progress_over(chosen.tolist(), "encoding again", unit="entry"):
        bucket, entry = entries[i]
        yield _compare(entry, videos[source_key(entry.key)], bucket, manifest, vae)


def _compare(entry: Sample, source: Sample, bucket: str, manifest: Manifest, vae: VideoVAE) -> Reencoded:
    data = BucketSettings.from_name(bucket).clip_settings(DataSettings(**manifest.data))
    metadata = entry.read_json()
    clip = load_clip(source, data, metadata["start"], flip=metadata["flip"])
    mean, std = (moment[0].cpu() for moment in encode_pieces(vae, iter([clip[None]]), streamed=False))
    stored = load_entry(entry, 0, manifest.classes)
    error = _relative_error(stored["mean"], mean)
    if manifest.posterior == "moments":
        error = max(error, _relative_error(stored["std"], std))
    with torch.no_grad():
        decoded = vae.decode(stored["mean"][None].to(vae.device, vae.dtype)).sample[0].float().clamp(-1, 1)
    return Reencoded(entry.name, error, to_uint8(to_float(clip)), to_uint8(decoded))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))
