"""What `encode` and `decode` accept, and the errors that say so."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from odvae.frame_counts import check_frame_count, check_picture_size
from odvae.running.errors import InputError

# Pixels in [-1, 1] may overshoot a little (resizing, noise), those in 0..255 do by far; between the two lies no mistake
# that the range alone would prove.
LARGEST_PIXEL = 8.0


def check_video(video: Tensor, temporal_ratio: int, spatial_ratio: int) -> None:
    """Raise InputError unless `video` is floats (b, 3, t, h, w) of a size that a VAE with these ratios takes.

    That is t = temporal_ratio*k + 1, h and w multiples of spatial_ratio. Reads no values.
    """
    shape = tuple(video.shape)
    if video.ndim != 5 or shape[1] != 3:
        raise InputError(f"a video is (batch, 3, frames, height, width), found {shape}")
    if not video.is_floating_point():
        raise InputError(f"pixels are floats in [-1, 1], found {video.dtype}; from 0..255: video / 127.5 - 1")
    if temporal_ratio > 1:  # a stream's chunk may be empty
        check_frame_count(shape[2], temporal_ratio)
    check_picture_size(shape[3], shape[4], spatial_ratio)


def check_latents(latents: Tensor, channels: int) -> None:
    """Raise InputError unless `latents` is floats (b, channels, k, h, w). Reads no values."""
    if latents.ndim != 5 or latents.shape[1] != channels:
        raise InputError(f"latents are (batch, {channels}, frames, height, width), found {tuple(latents.shape)}")
    if not latents.is_floating_point():
        raise InputError(f"latents are floats, found {latents.dtype}")


def check_pixel_values(video: Tensor) -> None:
    """Raise InputError for NaN, and for pixels so far outside [-1, 1] that they must be 0..255 or the like.

    One pass over the video; on a GPU it waits for the result, so training steps do without.
    """
    low, high = _range(video)
    if math.isnan(low) or math.isnan(high):
        raise InputError("the video has NaN pixels")
    if max(-low, high) > LARGEST_PIXEL:
        raise InputError(f"pixels are in [-1, 1], found {low:g} to {high:g}; from 0..255: video / 127.5 - 1")


def check_latent_values(latents: Tensor) -> None:
    """Raise InputError for NaN or infinite latents. Waits for a GPU, as `check_pixel_values` does."""
    low, high = _range(latents)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("the latents have NaN or infinite values")


def _range(x: Tensor) -> tuple[float, float]:
    """Least and greatest value (NaN if there is one); (0, 0) where values cannot be read: compiling, meta, empty."""
    if torch.compiler.is_compiling() or x.is_meta or not x.numel():
        return 0.0, 0.0
    low, high = torch.stack(torch.aminmax(x.detach())).tolist()  # one wait for both
    return low, high
