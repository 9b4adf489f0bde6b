"""Equivariance of latents to scaling and quarter turns, in training (EQ-VAE: Kouzelis et al. 2025, arXiv 2502.09509).

In some steps latents are scaled and turned before they are decoded, and the reconstruction is compared with the video
that was changed in the same way. So latents carry what is where in the picture, and little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from odvae.regularizers.settings import EquivarianceSettings
from odvae.running.errors import InputError
from odvae.running.seeds import derive_seed

LPIPS_SIDE = 32  # pixels; the backbones of LPIPS cannot take much smaller frames


@dataclass(frozen=True)
class Transformation:
    """Frames are resized to `size`, (h, w) in latent positions, then turned left by quarter turns."""

    size: tuple[int, int]
    quarter_turns: int

    def grid(self, frames: int) -> tuple[int, int, int]:
        """The (t, h, w) of transformed latents of so many frames."""
        height, width = self.size
        return (frames, width, height) if self.quarter_turns % 2 else (frames, height, width)

    def __call__(self, x: Tensor, positions: int = 1) -> Tensor:
        """Latents (b, c, t, h, w), or a video with `positions` pixels for each latent position, transformed.

        Resized bilinearly with antialiasing, in float32; the result has the dtype of x.
        """
        size = [side * positions for side in self.size]
        if size != list(x.shape[3:]):
            frames = rearrange(x.float(), "b c t h w -> (b t) c h w")
            frames = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
            x = rearrange(frames, "(b t) c h w -> b c t h w", b=len(x)).to(x.dtype)
        return torch.rot90(x, self.quarter_turns, dims=(3, 4))


def draw_transformation(
    settings: EquivarianceSettings, grid: Sequence[int], seed: int, name: str, step: int
) -> Transformation | None:
    """The transformation of a step for latents of (t, h, w), None in the other steps: a function of (seed, name, step).

    All ranks and micro-steps of a step have the same.
    """

    def uniform(what: str) -> float:
        return derive_seed(seed, f"equivariance: {what}", name, step) / 2**63

    if uniform("whether") >= settings.probability:
        return None
    scale = settings.min_scale + (1 - settings.min_scale) * uniform("scale")
    height, width = (max(1, round(scale * side)) for side in grid[1:])
    turns = 1 + int(3 * uniform("turns")) if settings.quarter_turns else 0
    return Transformation((height, width), turns)


def check_smallest_clip(min_scale: float, height: int, width: int, spatial_ratio: int) -> None:
    """Raise InputError where the smallest scaled clip has frames that LPIPS cannot take."""
    positions = [max(1, round(min_scale * (side // spatial_ratio))) for side in (height, width)]
    if (smallest := min(positions) * spatial_ratio) < LPIPS_SIDE:
        raise InputError(
            f"vae.regularizers.equivariance.min_scale={min_scale:g} scales clips of {height}x{width} down to "
            f"{smallest} pixels, but LPIPS needs {LPIPS_SIDE}: raise it, or set vae.loss.lpips=null"
        )
