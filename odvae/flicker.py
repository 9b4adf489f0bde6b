"""How restless a video is: what a reconstruction adds to the changes from frame to frame, and where.

Videos are (b, 3, t, h, w) in [-1, 1], t >= 2; changes are in 8-bit levels (0 to 255).
"""

from __future__ import annotations

import torch
from torch import Tensor

from odvae.running.errors import InputError

LEVELS = 127.5  # 8-bit levels in a unit of [-1, 1]


def frame_changes(video: Tensor) -> Tensor:
    """The change from each frame to the next, in levels: (b, 3, t - 1, h, w)."""
    if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < 2:
        raise InputError(f"expected a video (b, 3, t >= 2, h, w), found {tuple(video.shape)}")
    return (video[:, :, 1:] - video[:, :, :-1]) * LEVELS


def steadiness(video: Tensor) -> Tensor:
    """VBench's "temporal flickering", (255 - mean |change|) / 255: (b,). 1 is a still picture; motion lowers it too."""
    return 1 - frame_changes(video).abs().mean(dim=(1, 2, 3, 4)) / 255


def added_flicker(video: Tensor, reference: Tensor) -> Tensor:
    """Mean |change of the video - change of the reference| of each pair of frames: (b, t - 1).

    Unlike `steadiness`, it is 0 for the reference itself, however much moves in it.
    """
    if video.shape != reference.shape:
        raise InputError(f"expected two videos of one shape, found {tuple(video.shape)}, {tuple(reference.shape)}")
    return (frame_changes(video) - frame_changes(reference)).abs().mean(dim=(1, 3, 4))


def seam_ratio(flicker: Tensor, temporal_compression_ratio: int) -> float | None:
    """Flicker between frames of different latents over flicker between frames of the same one; 1: no seams.

    `flicker` is `added_flicker`'s (b, t - 1). None where the VAE does not compress time or the video is too short.
    """
    between = (
        torch.arange(flicker.shape[1]) % temporal_compression_ratio == 0
    )  # frame 0 alone, then groups of temporal_compression_ratio frames
    if temporal_compression_ratio == 1 or between.sum() < 2 or between.all():
        return None
    return float(flicker[:, between].mean() / flicker[:, ~between].mean().clamp(min=1e-6))
