"""Verification of a latent folder against its manifest: by hashes, and by encoding some entries again."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.encoding.encode_shards import encode_pieces
from ldm.encoding.settings import BucketSettings
from ldm.encoding.verified_files import VerifiedFiles, in_processes
from ldm.latents.entries import EntryForm, load_entries, load_entry, source_key
from ldm.latents.index_files import find_index, latent_rows, open_index
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import Manifest, changed_config, changed_hash, resized_files
from ldm.latents.text_manifest import TEXT_FOLDER, text_problems
from ldm.networks.text_encoder import load_text_encoder
from odvae.clips.clip import load_clip
from odvae.clips.permutation import permuted
from odvae.clips.settings import DataSettings
from odvae.index.folder_index import FolderIndex
from odvae.index.shard_rows import shard_state
from odvae.running.account import shown_names
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint
from odvae.running.progress import progress_bar, progress_over
from odvae.running.seeds import derive_seed
from odvae.shards.samples import Sample
from odvae.shards.tars import index_shard
from odvae.storage.paths import open_path
from odvae.storage.states import find_state
from odvae.storage.whole_files import fingerprint
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


def find_problems(folder: Path, manifest: Manifest, processes: int = 1, again: bool = False) -> Iterator[str]:
    """Differences between the folder and its manifest, one sentence each: hashes, counts, text encoder, source shards.

    Of each latent shard the hash of its bytes, and its rows in the index with the checksums of all entries; of each
    source its hash, unless it is missing: latents may be copied without their videos. `processes` share the files.
    Those that were right are recorded, and skipped the next time while their size and modification time are the same,
    except with `again`.
    """
    resized = list(resized_files(folder, manifest))
    empty_text = manifest.empty_text_file(folder)
    if not manifest.lacks_text and find_state(empty_text) is not None:
        found = fingerprint(empty_text)
        if found != manifest.empty_text_sha256:
            yield changed_hash(empty_text, found, manifest.empty_text_sha256)
    if manifest.separate_text is not None:
        resized += list(text_problems(folder, manifest.separate_text, manifest.shards))
    yield from resized
    if resized:
        return
    sentences = list(_wrong_files(folder, manifest, processes, again))
    yield from sentences
    if not sentences:
        try:
            open_latents(folder, manifest, with_text=not manifest.lacks_text)
        except InputError as error:
            yield str(error)
    own_encoder = folder / manifest.text_encoder
    if not manifest.lacks_text and find_state(own_encoder / "config.json") is not None:
        found = weights_fingerprint(load_text_encoder(own_encoder).model)
        if found != manifest.text_sha256:
            yield f"{own_encoder}: its weights' sha256 is {found[:16]}..., unlike text_sha256 in the manifest"


def _wrong_files(folder: Path, manifest: Manifest, processes: int, again: bool) -> Iterator[str]:
    index, checks, first = find_index(folder, manifest), list[_Check](), 0
    for record in manifest.shards:
        checks.append(_Check(folder / record.name, record.sha256, first))
        first += record.entries
    sources = {record.source: record.source_sha256 for record in manifest.shards}
    of_text = manifest.separate_text.shards if manifest.separate_text is not None else []
    checks += [_Check(folder / TEXT_FOLDER / record.name, record.sha256, is_text=True) for record in of_text]
    named = {open_path(name): sha256 for name, sha256 in sources.items()}
    checks += [_Check(path, sha256) for path, sha256 in named.items() if find_state(path) is not None]
    verified = VerifiedFiles(folder)
    todo = [check for check in checks if again or not verified.has(check.path, check.sha256)]
    if done := len(checks) - len(todo):
        print(f"{done} of {len(checks)} files were verified before, and have the same size and time", file=sys.stderr)
    before = [shard_state(check.path) for check in todo]
    megabytes = [state.bytes / 1e6 for state in before]
    with progress_bar("verifying", 0, math.ceil(sum(megabytes)), unit="MB") as bar:
        results = in_processes(partial(_check_file, index), todo, processes)
        for check, state, size, sentences in zip(todo, before, megabytes, results, strict=True):
            bar.update(size)
            yield from sentences
            if not sentences:
                verified.add(check.path, state, check.sha256)


@dataclass(frozen=True)
class _Check:
    """A file, with the hash that it should have; of a latent shard, the number of its first row in the index."""

    path: Path
    sha256: str
    first_row: int | None = None
    is_text: bool = False


def _check_file(index: FolderIndex | None, check: _Check) -> list[str]:
    """What is wrong with a file, one sentence each."""
    try:
        found = fingerprint(check.path)
        if found != check.sha256:
            if check.first_row is not None or check.is_text:
                return [changed_hash(check.path, found, check.sha256)]
            return [
                f"{check.path} was changed after its latents were encoded: its sha256 is not the manifest's "
                "source_sha256"
            ]
        if index is None or check.first_row is None:
            return []
        rows = latent_rows(check.path)
        indexed = [index.row(check.first_row + i) for i in range(len(rows))]
    except (InputError, OSError, IndexError) as error:
        return [f"{check.path}: {error}"]
    wrong = [row.key for row, other in zip(rows, indexed, strict=True) if row != other]
    if wrong:
        return [f"{index.path}: its rows of {check.path.name} are not what the shard has: {shown_names(wrong)}"]
    return []


def sample_problems(folder: Path, manifest: Manifest, count: int, seed: int, processes: int = 1) -> Iterator[str]:
    """Those of `count` random entries that are not what was indexed or cannot be read, one sentence each."""
    index = open_index(folder, manifest)
    rows = [permuted(i, len(index), derive_seed(seed, "sample")) for i in range(min(count, len(index)))]
    forms = {record.name: manifest.entry_form(record.bucket) for record in manifest.shards}
    with progress_bar("verifying entries", 0, len(rows), unit="entry") as bar:
        for sentence in in_processes(partial(_check_entry, index, manifest, forms), rows, processes):
            bar.update()
            if sentence:
                yield sentence


def _check_entry(index: FolderIndex, manifest: Manifest, forms: Mapping[str, EntryForm], row: int) -> str:
    """What is wrong with an entry; empty if it is right."""
    try:
        entry = index.sample(row)
        if problem := index.problem(row):
            return f"{entry.name}{problem}"
        for member in entry.members:
            entry.read(member)
        load_entries([entry], [0], manifest.classes, form=forms[entry.shard.name])
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{entry.name} cannot be read: {error.strerror}"
    return ""


def reencode(folder: Path, manifest: Manifest, vae_folder: Path, count: int, seed: int) -> Iterator[Reencoded]:
    """Encode `count` random entries again from their source videos, and decode the stored latents.

    Raises InputError where the VAE or a source shard is missing, or the VAE is not the one of the manifest.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = load_vae(vae_folder).to(device)
    found = weights_fingerprint(vae)
    if found != manifest.vae_sha256 or changed_config(manifest, vae_folder):
        raise InputError(f"{vae_folder} holds another VAE ({found[:16]}...) than {folder} was encoded with")
    index = open_index(folder, manifest)
    records = {record.name: record for record in manifest.shards}
    rows = [permuted(i, len(index), derive_seed(seed, "verify")) for i in range(min(count, len(index)))]
    entries = [index.sample(row) for row in rows]
    sources = {open_path(records[entry.shard.name].source) for entry in entries}
    if missing := [str(source) for source in sources if find_state(source) is None]:
        raise InputError(f"cannot encode again without the source shards: {', '.join(sorted(missing))}")
    videos = {source: {sample.key: sample for sample in index_shard(source)} for source in sources}
    for entry in progress_over(entries, "encoding again", unit="entry"):
        record = records[entry.shard.name]
        video = videos[open_path(record.source)][source_key(entry.key)]
        yield _compare(entry, video, record.bucket, manifest, vae)


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
