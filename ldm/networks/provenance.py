"""What a trained network's folder says it was trained on, and what must be there to sample from it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm.latents.manifest import TEXT_ENCODER_FOLDER, Manifest
from odvae.running.errors import InputError
from odvae.running.files import read_json, write_json

PROVENANCE = "trained_on.json"


@dataclass(frozen=True)
class Provenance:
    """`trained_on.json`, beside a network's weights."""

    vae_sha256: str
    text_encoder: str
    """A transformers folder or hub name; one that was learned beside the latents by its path from the run's ldm folder,
    so that a run folder may be moved."""
    text_sha256: str
    data: dict[str, Any]
    """The settings of the clips (`DataSettings`)."""
    latents: str

    @classmethod
    def of_latents(cls, manifest: Manifest, latents_folder: Path, ldm_folder: Path) -> Provenance:
        text_encoder = manifest.text_encoder
        if text_encoder == TEXT_ENCODER_FOLDER:
            text_encoder = os.path.relpath(latents_folder / TEXT_ENCODER_FOLDER, ldm_folder)
        return cls(manifest.vae_sha256, text_encoder, manifest.text_sha256, manifest.data, str(latents_folder))

    @classmethod
    def load(cls, folder: Path) -> Provenance:
        """Read that of the network in `folder`. Raises InputError where it is missing or another version's."""
        values = read_json(folder / PROVENANCE)
        if values.keys() != cls.__dataclass_fields__.keys():
            differing = ", ".join(sorted(values.keys() ^ cls.__dataclass_fields__.keys()))
            raise InputError(f"{folder / PROVENANCE}: keys differ: {differing}")
        return cls(**values)

    def save(self, folder: Path) -> None:
        write_json(folder / PROVENANCE, asdict(self))

    def text_encoder_in(self, ldm_folder: Path) -> str:
        """The text encoder's folder or hub name, for a run folder that lies where it lies now."""
        beside = ldm_folder / self.text_encoder
        return str(beside.resolve()) if beside.is_dir() else self.text_encoder


def ema_folder(decay: float) -> str:
    """Where the weights of a further average lie in the run's ldm folder."""
    return f"ema_{decay:g}"


def weights_folder(ldm_folder: Path, ema_decay: float | None) -> Path:
    """Where the weights of an average lie; None: of the main one. Raises InputError where there are none."""
    folder = ldm_folder if ema_decay is None else ldm_folder / ema_folder(ema_decay)
    if ema_decay is not None and not folder.is_dir():
        found = ", ".join(sorted(path.name for path in ldm_folder.glob("ema_*"))) or "none"
        raise InputError(f"{folder} does not exist: averages saved beside the main one in {ldm_folder}: {found}")
    return folder
