"""Conversion of pixels between uint8 (t, h, w, 3) and float (3, t, h, w) in [-1, 1]; only this module does it."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def to_float(frames: Tensor) -> Tensor:
    """uint8 (..., t, h, w, 3) in 0..255 -> float32 (..., 3, t, h, w) in [-1, 1]."""
    assert frames.dtype == torch.uint8, frames.dtype
    return rearrange(frames, "... t h w c -> ... c t h w").float() / 127.5 - 1


def to_uint8(video: Tensor) -> np.ndarray:
    """Float (..., 3, t, h, w), clamped to [-1, 1] -> uint8 (..., t, h, w, 3), rounded to nearest."""
    frames = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(frames, "... c t h w -> ... t h w c").cpu().numpy()
