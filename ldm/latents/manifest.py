"""`manifest.json` of a folder of latents, and the checks that the folder's files still match it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from ldm.latents.entries import DTYPES, EntryForm
from ldm.latents.text_manifest import TEXT_FOLDER, TextManifest, check_text, load_text_manifest
from odvae.running.commands import with_config
from odvae.running.distributed import main_process_first
from odvae.running.errors import InputError
from odvae.running.files import parse_record, parse_record_bytes, read_object, write_json
from odvae.running.hashing import file_fingerprint
from odvae.storage.files import local_copy, read_file
from odvae.storage.listing import list_states
from odvae.storage.paths import is_remote, is_web_server
from odvae.storage.states import find_state

FORMAT = 3  # 2: of version 0.1, with `stored` for `posterior`
MANIFEST = "manifest.json"
EMPTY_TEXT = "empty_text.safetensors"
TEXT_ENCODER_FOLDER = "text_encoder"  # of an encoder that was trained on the captions

# Own text encoders of a folder: with the latents, and with text in shards of its own.
_OWN_ENCODERS = (TEXT_ENCODER_FOLDER, f"{TEXT_FOLDER}/{TEXT_ENCODER_FOLDER}")

# No side of a latent or of a text embedding is larger.
_LARGEST_SIDE = 1 << 16


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One latent shard: its hash, size and number of entries, and the video shard it was encoded from."""

    name: str
    sha256: str
    bytes: int
    entries: int
    bucket: str
    source: str
    source_sha256: str
    source_entries: int


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`: everything that the latents depend on, and the folder's files."""

    vae_sha256: str
    vae_config: dict[str, Any]
    vae_folder: str
    """Path of the VAE at the time of encoding; `vae_sha256` and `vae_config` identify it."""
    text_encoder: str
    """Folder within the latents' folder, or a transformers folder or hub name. "text": the embeddings are in a folder
    of their own, whose manifest has these values (`ldm.latents.text_manifest`); then the other keys of text are 0 or
    empty here."""
    text_sha256: str
    text_width: int
    text_tokens: int
    empty_text_sha256: str
    data: dict[str, Any]
    """Settings of the clips (`DataSettings`)."""
    resize: str
    clips_per_video: int
    flip: bool
    posterior: str
    dtype: Literal["bf16", "fp16"]
    held_out: float
    buckets: dict[str, tuple[int, int, int, int]]
    """Bucket name -> shape (c, k, h, w) of its latents."""
    train_entries: int
    held_out_entries: int
    captioned_entries: int
    """Entries whose video has a caption."""
    captioned_share: float
    """Share of all entries."""
    captioned_train_entries: int
    captions: int
    """Captions that have an embedding: more than captioned entries where videos have several."""
    classes: list[str]
    """Names of all classes, sorted, integers by value; empty where no video had a class."""
    entries_by_class: dict[str, int]
    latents_mean: list[float]
    latents_std: list[float]
    failed: dict[str, str]
    """Keys of videos that could not be encoded -> reason."""
    shards: list[ShardRecord]
    code: dict[str, str]
    format: int = FORMAT
    precision: str = "fp32"
    """In which the VAE encoded: bf16 (autocast), fp32, or "unknown" where it was not recorded with the shards."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(c, k, h, w) of the latents; with several buckets, of the first."""
        return next(iter(self.buckets.values()))

    @property
    def separate_text(self) -> TextManifest | None:
        """The manifest of the text, where it is in shards of its own."""
        return None

    @property
    def lacks_text(self) -> bool:
        """Whether the latents have no text, and none in a folder of its own yet."""
        return self.text_encoder == TEXT_FOLDER and self.separate_text is None

    def entry_form(self, bucket: str, with_text: bool = True) -> EntryForm:
        """What the entries of a bucket are. `with_text` False: text of its own is not read."""
        of_text = self.separate_text.dtype if self.separate_text else self.dtype
        has_text = not self.lacks_text and (with_text or self.separate_text is None)
        return EntryForm(
            self.buckets[bucket],
            (self.text_tokens, self.text_width) if has_text else None,
            DTYPES[self.dtype],
            self.posterior == "moments",
            DTYPES[of_text],
        )

    def empty_text_file(self, folder: Path) -> Path:
        """The embedding of the empty caption, in the folder of the latents."""
        return (folder / TEXT_FOLDER if self.separate_text else folder) / EMPTY_TEXT

    def own_text_encoder(self, folder: Path) -> Path | None:
        """The text encoder that was trained on the captions, in the folder of the latents; None for any other."""
        return folder / self.text_encoder if self.text_encoder in _OWN_ENCODERS else None

    def save(self, folder: Path) -> None:
        write_json(folder / MANIFEST, asdict(self))


@dataclass(frozen=True)
class ManifestWithText(Manifest):
    """The manifest of latents whose text is in shards of its own: what it says of text is from the text's manifest."""

    separate_text: TextManifest | None = None

    @classmethod
    def joined(cls, manifest: Manifest, text: TextManifest) -> ManifestWithText:
        values = {field.name: getattr(manifest, field.name) for field in fields(Manifest)}
        values |= {name: getattr(text, name) for name in _OF_TEXT}
        return cls(**values, separate_text=text)


# Keys of both manifests, of which those of the text count.
_OF_TEXT = (
    "text_encoder", "text_sha256", "text_width", "text_tokens", "empty_text_sha256",
    "captioned_entries", "captioned_share", "captioned_train_entries", "captions",
)  # fmt: skip


def encode_command() -> str:
    """The command that encodes latents, for error messages."""
    return with_config("encode_latents")


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a latent folder, a path or a URL; where its text is in shards of its own, with theirs.

    Raises InputError when there is none (the encoding did not finish).
    """
    path = folder / MANIFEST
    if find_state(path) is None:
        raise InputError(f"{path} does not exist: the latents are not (completely) encoded; run: {encode_command()}")
    manifest = parse_record_bytes(Manifest, read_file(path))
    if manifest is None or manifest.format != FORMAT:
        manifest = _parse_with_errors(folder, path)
    for problem in _inconsistencies(manifest):
        raise InputError(
            f"{path} was damaged: {problem}; restore it, or move {folder} away and run: {encode_command()}"
        )
    if is_remote(folder) and manifest.text_encoder == TEXT_FOLDER:
        raise InputError(f"{folder}: text in shards of its own (encode.text=separate) is read from plain paths only")
    text = None if is_remote(folder) else load_text_manifest(folder)
    return manifest if text is None else ManifestWithText.joined(manifest, text)


def _parse_with_errors(folder: Path, path: Path) -> Manifest:
    """The manifest, of a file that is damaged or of another format: with an error that says what is wrong."""
    values = read_object(local_copy(path))
    found = values.get("format")
    if found != FORMAT:
        again = f"move {folder} away and run: {encode_command()}"
        if found == 2:
            raise InputError(
                f"{path} was written by version 0.1 (format 2, whose `stored` is now `posterior`), and nothing in the "
                f"folder was changed; {again}"
            )
        newer = isinstance(found, int) and found > FORMAT
        raise InputError(
            f"{path}: format {found!r}, this version reads {FORMAT}; {'update this project' if newer else again}"
        )
    return parse_record(Manifest, values, path)


def _inconsistencies(manifest: Manifest) -> Iterator[str]:
    """What in a manifest cannot be, one sentence each."""
    if not manifest.buckets or any(min(shape) < 1 or max(shape) > _LARGEST_SIDE for shape in manifest.buckets.values()):
        yield f"the shapes of its buckets are {str(manifest.buckets)[:200]}"
        return
    channels = {shape[0] for shape in manifest.buckets.values()} | {
        len(manifest.latents_mean),
        len(manifest.latents_std),
    }
    if len(channels) > 1:
        yield "its buckets, latents_mean and latents_std are of different numbers of channels"
    if not all(map(math.isfinite, (*manifest.latents_mean, *manifest.latents_std))) or min(manifest.latents_std) <= 0:
        yield "latents_mean and latents_std must be finite, and latents_std above 0"
    for key in ("text_width", "text_tokens"):
        least = 0 if manifest.text_encoder == TEXT_FOLDER else 1
        if not least <= getattr(manifest, key) <= _LARGEST_SIDE:
            yield f"{key} is {getattr(manifest, key)}"
    if not 0 < manifest.held_out < 1:
        yield f"held_out is {manifest.held_out}"
    for record in manifest.shards:
        if record.bucket not in manifest.buckets:
            yield f"{record.name} is in bucket {record.bucket!r}, which is not listed"
        if "/" in record.name or not 0 <= record.bytes < 2**63:
            yield f"no shard has the name {record.name!r} and {record.bytes} bytes"


def check_latents(folder: Path, manifest: Manifest, vae_sha256: str, vae_folder: Path) -> None:
    """Raise InputError for latents of another VAE, or with missing files: which field differs, and what to run.

    The shards are compared by name and size alone. An entry is compared with its checksum in the index when it is read
    (`ldm.latents.index_files`), and `tools/verify_latents.py` computes the hashes of all files.
    """
    again = f"remove {folder} and run: {encode_command()}"
    for key, (was, now) in changed_config(manifest, vae_folder).items():  # first: it says more than a hash
        raise InputError(
            f"{folder} was encoded by a VAE with other settings: its manifest's vae_config.{key} is {was!r}, in "
            f"{vae_folder / 'config.json'} it is {now!r}; {again}"
        )
    if manifest.vae_sha256 != vae_sha256:
        raise InputError(
            f"{folder} was encoded by another VAE: its manifest's vae_sha256 is {manifest.vae_sha256[:16]}..., that of "
            f"{vae_folder} is {vae_sha256[:16]}...; {again}"
        )
    state = PartialState()
    with main_process_first(on_each_machine=True):
        for problem in resized_files(folder, manifest) if state.is_local_main_process else ():
            raise InputError(f"{problem}; {again}, or restore the file")
        check_empty_text(folder, manifest, again)
        if manifest.separate_text is not None and state.is_local_main_process:
            check_text(folder, manifest.separate_text, manifest.shards)


def check_empty_text(folder: Path, manifest: Manifest, again: str) -> None:
    """Raise InputError where the file of the empty caption's embedding was changed."""
    if not manifest.lacks_text:
        path = manifest.empty_text_file(folder)
        if (found := file_fingerprint(local_copy(path))) != manifest.empty_text_sha256:
            raise InputError(f"{changed_hash(path, found, manifest.empty_text_sha256)}; {again}")


def changed_config(manifest: Manifest, vae_folder: Path) -> dict[str, tuple[Any, Any]]:
    """Keys of the VAE's config that differ from the manifest: {key: (in the manifest, now)}.

    The weights' hash alone does not identify a VAE: `norm` and `temporal_upsample` change what it computes, but no
    tensor.
    """
    now = read_object(local_copy(vae_folder / "config.json"))
    before = json.loads(json.dumps(manifest.vae_config))
    return {
        key: (before[key], now[key])
        for key in sorted(before.keys() & now.keys())
        if before[key] != now[key] and not key.startswith(("_", "latents_"))
    }


def resized_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files of the manifest that are missing or have another size, one sentence per file; no data is read."""
    sizes = {record.name: record.bytes for record in manifest.shards}
    # A web server need not list its files.
    listed = list_states(folder) if is_remote(folder) and not is_web_server(folder) else {}
    empty_text = [] if manifest.lacks_text else [str(manifest.empty_text_file(folder).relative_to(folder))]
    for name in (*sizes, *empty_text):
        path = folder / name
        found = listed.get(name) if listed else find_state(path)
        if found is None:
            yield f"{path} is missing, but the manifest lists it"
        elif found.size != sizes.get(name, found.size):
            yield f"{path} has {found.size} bytes, but {sizes[name]} by the manifest's shards.bytes"


def changed_hash(path: Path, found: str, expected: str) -> str:
    """The sentence about a file whose sha256 is not the manifest's."""
    return (
        f"{path} was changed after it was written: its sha256 is {found[:16]}..., that in the manifest "
        f"{expected[:16]}..."
    )
