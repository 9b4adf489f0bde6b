"""Temporal flicker metrics: changes from frame to frame, and how much of them a reconstruction adds.

Videos are (b, 3, t, h, w) in [-1, 1], t >= 2; changes are in 8-bit levels (0 to 255).
"""

from __future__ import annotations

import torch
from torch import Tensor

from odvae.running.errors import InputError

LEVELS = 127.5  # 8-bit levels per unit of [-1, 1]


def frame_changes(video: Tensor) -> Tensor:
    """The change from each frame to the next, in levels: (b, 3, t - 1, h, w)."""
    if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < 2:
        raise InputError(f"expected a video (b, 3, t >= 2, h, w), found {tuple(video.shape)}")
    return (video[:, :, 1:] - video[:, :, :-1]) * LEVELS


def steadiness(video: Tensor) -> Tensor:
    """VBench's "temporal flickering", (255 - mean |change|) / 255: (b,). 1 is a still image; motion lowers it too."""
    return 1 - frame_changes(video).abs().mean(dim=(1, 2, 3, 4)) / 255


def added_flicker(video: Tensor, reference: Tensor) -> Tensor:
    """Mean |change of the video - change of the reference| of each pair of successive frames: (b, t - 1).

    Unlike `steadiness`, it is not affected by motion: it is 0 if the video equals the reference.
    """
    if video.shape != reference.shape:
        raise InputError(f"expected two videos of one shape, found {tuple(video.shape)}, {tuple(reference.shape)}")
    return (frame_changes(video) - frame_changes(reference)).abs().mean(dim=(1, 3, 4))


def seam_ratio(flicker: Tensor, temporal_compression_ratio: int) -> float | None:
    """Flicker at the boundaries of latent frames, divided by the flicker within them; 1 means no visible seams.

    `flicker` (b, t - 1) is the result of `added_flicker`. None if the VAE does not compress time or the video is too
    short.
    """
    # A latent frame is frame 0, or a group of temporal_compression_ratio frames.
    between = torch.arange(flicker.shape[1]) % temporal_compression_ratio == 0
    if temporal_compression_ratio == 1 or between.sum() < 2 or between.all():
        return None
    return float(flicker[:, between].mean() / flicker[:, ~between].mean().clamp(min=1e-6))
