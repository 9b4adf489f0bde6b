"""Checks of the inputs of a VAE's `encode` and `decode`: shape, dtype and range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from odvae.architecture.frame_counts import check_frame_count, check_frame_size
from odvae.running.errors import InputError

# Pixels in [-1, 1] may overshoot a little (resizing, noise); pixels in 0..255 exceed this limit by far.
LARGEST_PIXEL = 8.0


def check_video(video: Tensor, temporal_ratio: int, spatial_ratio: int) -> None:
    """Raise InputError unless `video` is float (b, 3, t, h, w) with a size that a VAE with these ratios accepts.

    That is t = temporal_ratio*k + 1, and h and w multiples of spatial_ratio. Values are not read.
    """
    shape = tuple(video.shape)
    if video.ndim != 5 or shape[1] != 3:
        raise InputError(f"a video must be (batch, 3, frames, height, width), found {shape}")
    if not video.is_floating_point():
        raise InputError(
            f"pixels must be floats in [-1, 1], found {video.dtype}; convert 0..255 with video / 127.5 - 1"
        )
    if temporal_ratio > 1:  # with 1 it may be the chunk of a stream, which may be empty
        check_frame_count(shape[2], temporal_ratio)
    check_frame_size(shape[3], shape[4], spatial_ratio)


def check_latents(latents: Tensor, channels: int) -> None:
    """Raise InputError unless `latents` is float (b, channels, k, h, w). Values are not read."""
    if latents.ndim != 5 or latents.shape[1] != channels:
        raise InputError(f"latents must be (batch, {channels}, frames, height, width), found {tuple(latents.shape)}")
    if not latents.is_floating_point():
        raise InputError(f"latents must be floats, found {latents.dtype}")


def check_pixel_values(video: Tensor) -> None:
    """Raise InputError for NaN, and for pixels so far outside [-1, 1] that they are probably in 0..255.

    One pass over the video. On a GPU it waits for the result, so training steps skip this check.
    """
    low, high = _range(video)
    if math.isnan(low) or math.isnan(high):
        raise InputError("the video has NaN pixels")
    if max(-low, high) > LARGEST_PIXEL:
        raise InputError(f"pixels must be in [-1, 1], found {low:g} to {high:g}; convert 0..255 with video / 127.5 - 1")


def check_latent_values(latents: Tensor) -> None:
    """Raise InputError for NaN or infinite latents. On a GPU it waits for the result."""
    low, high = _range(latents)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("the latents have NaN or infinite values")


def _range(x: Tensor) -> tuple[float, float]:
    """Smallest and largest value (NaN if there is one); (0, 0) where values cannot be read: compiling, meta, empty."""
    if torch.compiler.is_compiling() or x.is_meta or not x.numel():
        return 0.0, 0.0
    low, high = torch.stack(torch.aminmax(x.detach())).tolist()  # one synchronization for both
    return low, high
