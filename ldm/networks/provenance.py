"""Provenance of a trained network, `trained_on.json`, and the folders of its EMA weights."""

from __future__ import annotations

import os
import posixpath
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ldm.latents.manifest import Manifest
from odvae.running.errors import InputError
from odvae.running.files import parse_record, read_object, write_json
from odvae.storage.paths import is_remote

PROVENANCE = "trained_on.json"

_OPTIONAL = ("base", "base_sha256", "frame_rate")


@dataclass(frozen=True)
class Provenance:
    """`trained_on.json` in a network's folder: what it was trained on, and what it needs for sampling."""

    vae_sha256: str
    text_encoder: str
    """A transformers folder or hub name. One in the latents' folder is given by its path relative to the run's ldm
    folder, so that a run folder can be moved."""
    text_sha256: str
    data: dict[str, Any]
    """Settings of the clips (`DataSettings`)."""
    latents: str
    base: str | None = None
    """Of a fine-tuned network: the folder of the network that its training began from, relative to its own folder where
    that is no URL."""
    base_sha256: str | None = None
    """Fingerprint of that network's weights."""
    frame_rate: float | None = None
    """Frames per second of the clips (of the first one, where they differ); None in what version 0.2 wrote."""

    @classmethod
    def of_latents(
        cls, manifest: Manifest, latents_folder: Path, ldm_folder: Path, frame_rate: float | None = None
    ) -> Provenance:
        text_encoder = manifest.text_encoder
        if (own := manifest.own_text_encoder(latents_folder)) is not None:
            text_encoder = _relative(own, ldm_folder)
        identity = manifest.vae_sha256, text_encoder, manifest.text_sha256, manifest.data, str(latents_folder)
        return cls(*identity, frame_rate=frame_rate)

    def with_base(self, base: Path, sha256: str, folder: Path) -> Provenance:
        """The provenance of a network in `folder` that was fine-tuned from the one in `base`."""
        start = folder if is_remote(folder) else folder.resolve()
        return replace(self, base=_relative(base.resolve(), start), base_sha256=sha256)

    @classmethod
    def load(cls, folder: Path) -> Provenance:
        """Read the provenance of the network in `folder`. Raises InputError where it is missing or has other keys."""
        values = dict.fromkeys(_OPTIONAL) | read_object(folder / PROVENANCE)
        return parse_record(cls, values, folder / PROVENANCE)

    def save(self, folder: Path) -> None:
        """Write it; without the optional entries that are None."""
        values = {key: value for key, value in asdict(self).items() if value is not None or key not in _OPTIONAL}
        write_json(folder / PROVENANCE, values)

    def text_encoder_in(self, ldm_folder: Path) -> str:
        """The text encoder's folder or hub name, for the run's ldm folder at its present path, or its URL."""
        if is_remote(ldm_folder) and self.text_encoder.startswith("../"):
            scheme, _, rest = str(ldm_folder).partition("://")
            return f"{scheme}://{posixpath.normpath(posixpath.join(rest, self.text_encoder))}"
        if is_remote(ldm_folder):
            return self.text_encoder
        folder = ldm_folder / self.text_encoder
        return str(folder.resolve()) if os.path.isdir(folder) else self.text_encoder  # also for a name of any length


def _relative(folder: Path, start: Path) -> str:
    """The path of `folder` from `start`, of two URLs too; its own where one of both is a URL."""
    if is_remote(folder) != is_remote(start):
        return str(folder)
    return os.path.relpath(str(folder), str(start))


def ema_folder(decay: float) -> str:
    """Folder, in the run's ldm folder, of the EMA weights of an `extra_ema_decays` entry."""
    return f"ema_{decay:g}"


def weights_folder(ldm_folder: Path, ema_decay: float | None) -> Path:
    """Folder of the EMA weights with this decay; None: of the main ones. Raises InputError where there are none."""
    folder = ldm_folder if ema_decay is None else ldm_folder / ema_folder(ema_decay)
    if ema_decay is not None and not folder.is_dir():
        found = ", ".join(sorted(path.name for path in ldm_folder.glob("ema_*"))) or "none"
        raise InputError(f"{folder} does not exist; further EMA weights in {ldm_folder}: {found}")
    return folder
