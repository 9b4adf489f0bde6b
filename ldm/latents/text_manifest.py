"""`text/` in a folder of latents: the embeddings of the captions in shards of their own (`encode.text=separate`).

`text/NAME.tar` has the captions of the videos in the latent shard `NAME.tar`, an entry a video: `KEY.safetensors`
(text, text_mask) of the first caption, `KEY.text1.safetensors`, ... of others, and `KEY.json` (caption, captions). Row
i of `text/index.arrow` is the place of the text of row i of the latents' index: of a video with several clips each row
has the same place. `text/manifest.json` names the text encoder, and the latent shards that the text is of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from odvae.running.commands import with_config
from odvae.running.errors import InputError
from odvae.running.files import parse_record, read_object, write_json

TEXT_FOLDER = "text"
TEXT_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class TextShardRecord:
    """One shard of text: its hash and size, the rows of its index, and the latent shard of the same name."""

    name: str
    sha256: str
    bytes: int
    entries: int
    """Rows of its index: the entries of the latent shard."""
    latents_sha256: str


@dataclass(frozen=True)
class TextManifest:
    """Contents of `text/manifest.json`. The keys that the latents' manifest has too mean the same, and count instead of
    its own."""

    text_encoder: str
    """A transformers folder or hub name; text/text_encoder for one that was trained on the captions."""
    text_sha256: str
    text_width: int
    text_tokens: int
    empty_text_sha256: str
    dtype: Literal["bf16", "fp16"]
    captioned_entries: int
    captioned_share: float
    captioned_train_entries: int
    captions: int
    failed: dict[str, str]
    """Keys of videos whose captions cannot be read -> reason."""
    shards: list[TextShardRecord]
    code: dict[str, str]
    format: Literal[1] = 1

    def save(self, folder: Path) -> None:
        """Write it into the folder of the latents."""
        write_json(folder / TEXT_FOLDER / TEXT_MANIFEST, asdict(self))


def load_text_manifest(folder: Path) -> TextManifest | None:
    """The manifest of the text in a folder of latents; None where there is none."""
    path = folder / TEXT_FOLDER / TEXT_MANIFEST
    return parse_record(TextManifest, read_object(path), path) if path.is_file() else None


def embed_command() -> str:
    """The command that embeds captions alone, for error messages."""
    return with_config("encode_latents", " and encode.text=only")


class _Shard(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...


def text_problems(folder: Path, text: TextManifest, latents: Sequence[_Shard]) -> Iterator[str]:
    """Why the text is not that of these latent shards: other ones, missing or resized files; no data is read."""
    known = {record.name: record for record in text.shards}
    for shard in latents:
        record = known.get(shard.name)
        if record is None:
            yield f"{folder / TEXT_FOLDER} has no text of {shard.name}"
        elif record.latents_sha256 != shard.sha256:
            yield (
                f"{folder / TEXT_FOLDER / shard.name} is the text of other latents: of a {shard.name} with sha256 "
                f"{record.latents_sha256[:16]}..., in the manifest it is {shard.sha256[:16]}..."
            )
        elif not (path := folder / TEXT_FOLDER / shard.name).is_file():
            yield f"{path} is missing, but {TEXT_FOLDER}/{TEXT_MANIFEST} lists it"
        elif (size := path.stat().st_size) != record.bytes:
            yield f"{path} has {size} bytes, but {record.bytes} by {TEXT_FOLDER}/{TEXT_MANIFEST}"
    if [record.name for record in text.shards] != [shard.name for shard in latents]:
        yield f"{folder / TEXT_FOLDER} lists other shards, or in another order, than the latents' manifest"


def check_text(folder: Path, text: TextManifest, latents: Sequence[_Shard]) -> None:
    """Raise InputError with the first of `text_problems`, and the command that embeds what is missing."""
    for problem in text_problems(folder, text, latents):
        raise InputError(f"{problem}; run: {embed_command()}")
