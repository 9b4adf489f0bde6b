"""`text/shards/NAME.json` in a folder of latents: the record of one shard of text; the text's manifest made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm.encoding.settings import EncodeSettings
from ldm.latents.manifest import EMPTY_TEXT, TEXT_ENCODER_FOLDER, Manifest
from ldm.latents.text_index import write_text_index
from ldm.latents.text_manifest import TEXT_FOLDER, TextManifest, TextShardRecord, embed_command
from ldm.networks.settings import LEARNED, TextSettings
from ldm.networks.text_encoder import TextEncoder
from odvae.running.account import shown_names
from odvae.running.errors import InputError
from odvae.running.files import parse_record, read_object
from odvae.running.hashing import file_fingerprint, weights_fingerprint
from odvae.running.run_folder import code_version


@dataclass(frozen=True)
class TextRecord:
    """One shard of text; keys that a `TextShardRecord` or a `TextManifest` has too mean the same."""

    name: str
    sha256: str
    bytes: int
    entries: int
    latents_sha256: str
    text_sha256: str
    captions_checksum: str
    """Of the captions that were embedded."""
    captioned_entries: int
    captioned_train_entries: int
    captions: int
    failed: dict[str, str]

    def of_manifest(self) -> TextShardRecord:
        return TextShardRecord(self.name, self.sha256, self.bytes, self.entries, self.latents_sha256)


def record_path(folder: Path, name: str) -> Path:
    return folder / TEXT_FOLDER / "shards" / f"{Path(name).stem}.json"


def read_text_record(folder: Path, name: str) -> TextRecord | None:
    """The record of the text of a latent shard; None where there is none. Raises InputError where it was damaged."""
    path = record_path(folder, name)
    return parse_record(TextRecord, read_object(path), path) if path.is_file() else None


def write_text_manifest(
    encoder: TextEncoder, settings: EncodeSettings, text: TextSettings, latents: Manifest, folder: Path
) -> None:
    """Write index and manifest of the text of these latents, whose empty caption's embedding is there.

    Raises InputError with the latent shards whose text is missing, or is that of an earlier shard.
    """
    found = {record.name: read_text_record(folder, record.name) for record in latents.shards}
    missing = [
        record.name
        for record in latents.shards
        if (one := found[record.name]) is None or one.latents_sha256 != record.sha256
    ]
    if missing:
        raise InputError(
            f"{folder / TEXT_FOLDER} lacks the text of {len(missing)} latent shards: {shown_names(missing)}; run: "
            f"{embed_command()} (or the parts that have them)"
        )
    records = [record for record in found.values() if record is not None]
    entries = latents.train_entries + latents.held_out_entries
    captioned = sum(record.captioned_entries for record in records)
    shards = [record.of_manifest() for record in records]
    write_text_index(folder, shards)
    TextManifest(
        text_encoder=f"{TEXT_FOLDER}/{TEXT_ENCODER_FOLDER}" if text.encoder == LEARNED else text.encoder,
        text_sha256=weights_fingerprint(encoder.model),
        text_width=encoder.width,
        text_tokens=text.max_tokens,
        empty_text_sha256=file_fingerprint(folder / TEXT_FOLDER / EMPTY_TEXT),
        dtype=settings.dtype,
        captioned_entries=captioned,
        captioned_share=round(captioned / entries, 4),
        captioned_train_entries=sum(record.captioned_train_entries for record in records),
        captions=sum(record.captions for record in records),
        failed={key: reason for record in records for key, reason in record.failed.items()},
        shards=shards,
        code=code_version(),
    ).save(folder)
