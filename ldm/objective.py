"""Rectified flow: the straight path between data and noise, and what the network learns of it.

Symbols: x data, eps noise, sigma in [0, 1] the share of noise. Pure functions of tensors.
Sources: Liu et al. 2022 (arXiv 2209.03003), equation 1; Esser et al. 2024 (arXiv 2403.03206), equations 13 and 19.
"""

from __future__ import annotations

import torch
from torch import Tensor


def interpolate(x: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """z = (1 - sigma) x + sigma eps; sigma is (b,)."""
    sigma = _like(sigma, x)
    return (1 - sigma) * x + sigma * eps


def velocity(x: Tensor, eps: Tensor) -> Tensor:
    """dz/dsigma = eps - x, the same all along the path: the network's target."""
    return eps - x


def data_estimate(z: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """x = z - sigma v: what a velocity says about the clean data."""
    return z - _like(sigma, z) * v


def logit_normal(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Noise levels sigma = sigmoid(mean + std n) of standard normal n: more of the middle, less of the ends."""
    return torch.sigmoid(mean + std * normal)


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.view(-1, *[1] * (x.ndim - 1))
