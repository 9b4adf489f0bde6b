"""Latent masked reconstruction (LMR) in training: the decoder has to fill in latents that are missing.

So latents must be predictable from their neighbors and from few directions of channels (SSVAE: Liu et al. 2025,
arXiv 2512.05394, "Latent Masked Reconstruction").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from odvae.regularizers.settings import LatentMaskingSettings
from odvae.running.seeds import derive_seed, normal_per_sample


def masked_fraction(settings: LatentMaskingSettings, seed: int, name: str, step: int) -> float:
    """The share of the latent positions that is masked in a step; a function of (seed, name, step)."""
    u = derive_seed(seed, "masked fraction", name, step) / 2**63
    for fraction, probability in zip(settings.fractions, settings.probabilities, strict=True):
        if u < probability:
            return fraction
        u -= probability
    return settings.fractions[-1]  # the probabilities' sum is 1 but for rounding


def draw_mask(
    grid: Sequence[int],
    fraction: float,
    block: Sequence[int],
    seed: int,
    name: str,
    numbers: Sequence[int],
    device: torch.device | str,
) -> Tensor:
    """Where each sample's latents are masked: (b, 1, t, h, w) bool for the latents' `grid` (t, h, w).

    The grid is divided into blocks; `fraction` of them, rounded, are masked, which is a function of (seed, name, number
    of the sample). Blocks at the end of an axis may be incomplete.
    """
    blocks = [math.ceil(size / side) for size, side in zip(grid, block, strict=True)]
    count = round(fraction * math.prod(blocks))
    if count == 0:
        return torch.zeros(len(numbers), 1, *grid, dtype=torch.bool, device=device)
    scores = normal_per_sample(blocks, seed, name, numbers, device).flatten(1)  # (b, blocks)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(count).indices, True)
    mask = mask.view(len(numbers), 1, *blocks)
    for axis, side in enumerate(block, start=2):
        mask = mask.repeat_interleave(side, dim=axis)
    t, h, w = grid
    return mask[:, :, :t, :h, :w]
