"""The latents that an experiment will have, before they are encoded: shapes, bytes, and a manifest for its network."""

from __future__ import annotations

import math
from typing import Any

from ldm.experiment import Experiment
from ldm.latents.manifest import Manifest
from ldm.networks.settings import LEARNED
from ldm.planning.devices import TEXT_ENCODERS, TextEncoderSize, load_text_encoders
from odvae.architecture.frame_counts import latent_frames
from odvae.running.errors import InputError

# Of a class-conditional network before its videos are known: UCF101's. It changes one row of a table a class.
_CLASSES = 101


def text_encoder_size(experiment: Experiment) -> TextEncoderSize:
    """Width and parameters of the text encoder; of a learned one, which is small, about.

    Raises InputError for a published one that is not in the table.
    """
    name, text = experiment.text.encoder, experiment.text
    if name == LEARNED:
        return TextEncoderSize(width=text.width, parameters=1000 * text.width + 24 * text.width**2)
    known = load_text_encoders()
    if name not in known:
        raise InputError(
            f"text.encoder={name}: its size is not in {TEXT_ENCODERS.name}, which has {', '.join(known)}; add it"
        )
    return known[name]


def latent_shape(frames: int, height: int, width: int, vae: Any) -> tuple[int, int, int, int]:
    """(c, k, h, w) of the latents of clips of this size, encoded by this VAE."""
    ratio = vae.spatial_compression_ratio
    k = latent_frames(frames, vae.temporal_compression_ratio)
    return vae.config.latent_channels, k, height // ratio, width // ratio


def bytes_per_clip(experiment: Experiment, shape: tuple[int, int, int, int]) -> int:
    """Bytes of one encoded clip in 16 bits, with its caption's embedding without padding at its longest."""
    moments = 1 if experiment.encode.posterior == "mean" else 2
    text = 0
    if experiment.ldm.conditioning.kind == "text":
        text = experiment.text.max_tokens * text_encoder_size(experiment).width
    return 2 * (moments * math.prod(shape) + text)


def planned_manifest(experiment: Experiment, shape: tuple[int, int, int, int]) -> Manifest:
    """A manifest of latents of this shape, with those entries that a network depends on."""
    text = experiment.ldm.conditioning.kind == "text"
    values: dict[str, Any] = dict.fromkeys(Manifest.__dataclass_fields__, 0)
    values |= {
        "buckets": {"planned": shape},
        "classes": [str(i) for i in range(_CLASSES)],
        "latents_mean": [0.0] * shape[0],
        "latents_std": [1.0] * shape[0],
        "text_tokens": experiment.text.max_tokens,
        "text_width": text_encoder_size(experiment).width if text else 1,
    }
    return Manifest(**values)
