"""What a trained network was trained on, and where its further averages lie."""

from __future__ import annotations

import os
from pathlib import Path

from ldm.latents.manifest import TEXT_ENCODER_FOLDER, Manifest

PROVENANCE = "trained_on.json"


def provenance(manifest: Manifest, latents_folder: Path, folder: Path) -> dict:
    """What a network was trained on, and what must be there to sample from it.

    A text encoder beside the latents is named by its path from `folder`, so that a run folder may be moved.
    """
    learned_here = manifest.text_encoder == TEXT_ENCODER_FOLDER
    return {
        "vae_sha256": manifest.vae_sha256,
        "text_encoder": os.path.relpath(latents_folder / TEXT_ENCODER_FOLDER, folder)
        if learned_here
        else manifest.text_encoder,
        "text_sha256": manifest.text_sha256,
        "data": manifest.data,
        "latents": str(latents_folder),
    }


def ema_folder(decay: float) -> str:
    """Where the weights of a further average lie in the run's ldm folder."""
    return f"ema_{decay:g}"
