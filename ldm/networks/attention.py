"""Attention over video tokens: 3D RoPE, qk-norm, full or factorized over space and time.

Tokens are (b, n, d) with n = t * h * w; those of a frame are contiguous.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ldm.networks.attention_backends import HasAttention, attend

# A token attends to all tokens, to those of its frame, or to those at its spatial position in all frames.
AttentionAxis = Literal["all", "space", "time"]


def rope_angles(shape: tuple[int, int, int], head_width: int, theta: float, device: torch.device) -> Tensor:
    """RoPE angles (n, head_width / 2) of a (t, h, w) grid: channel pairs are divided over the axes t, h and w.

    Positions are integers, so a larger grid extends the angles of a smaller one.
    """
    pairs = head_width // 2
    space = pairs * 3 // 8
    per_axis = (pairs - 2 * space, space, space)
    angles = []
    for size, count in zip(shape, per_axis, strict=True):
        frequency = theta ** (-torch.arange(count, device=device, dtype=torch.float32) / count)
        angles.append(torch.arange(size, device=device, dtype=torch.float32)[:, None] * frequency)
    t, h, w = shape
    return torch.cat(
        [
            repeat(angles[0], "t p -> (t h w) p", h=h, w=w),
            repeat(angles[1], "h p -> (t h w) p", t=t, w=w),
            repeat(angles[2], "w p -> (t h w) p", t=t, h=h),
        ],
        dim=1,
    )


def rope_cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines and signed sines (n, 1, d) of angles (n, d / 2), for `apply_rope`; computed once for all blocks."""
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rope(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the channel pairs (i, i + d/2) of x (b, n, heads, d) by the angles of `rope_cos_sin`."""
    cos, sin = rope
    y = x.float()
    return torch.addcmul(y * cos, y.roll(y.shape[-1] // 2, dims=-1), sin).to(x.dtype)


def _norm(width: int) -> nn.LayerNorm:
    """qk-norm (Dehghani et al. 2023, arXiv 2302.05442, section 2)."""
    return nn.LayerNorm(width, eps=1e-6, bias=False)


class _Attention(HasAttention, nn.Module):
    """Common part of self- and cross-attention: heads, and the back end with diffusers' switch for xformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def set_use_memory_efficient_attention_xformers(self, valid: bool, _attention_op: object = None) -> None:
        """Called by diffusers' `enable_xformers_memory_efficient_attention` on every module of a model."""
        self.backend = "xformers" if valid else "sdpa"


class SelfAttention(_Attention):
    """Self-attention with RoPE over all tokens, over space, or over time. (b, n, d) -> (b, n, d)"""

    def __init__(self, width: int, heads: int, axis: AttentionAxis) -> None:
        super().__init__(width, heads)
        self.axis = axis
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = _norm(width // heads), _norm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], frames: int) -> Tensor:
        # Heads stay behind the tokens until the last rearrange, so that splitting off frames is a view, not a copy.
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b n heads d", three=3, heads=self.heads)
        q, k = apply_rope(self.q_norm(q), rope), apply_rope(self.k_norm(k), rope)
        if self.axis == "space":
            q, k, v = (rearrange(y, "b (t s) heads d -> (b t) heads s d", t=frames) for y in (q, k, v))
        elif self.axis == "time":
            q, k, v = (rearrange(y, "b (t s) heads d -> (b s) heads t d", t=frames) for y in (q, k, v))
        else:
            q, k, v = (rearrange(y, "b n heads d -> b heads n d") for y in (q, k, v))
        y = attend(q, k, v, None, self.backend)
        if self.axis == "space":
            return self.out(rearrange(y, "(b t) heads s d -> b (t s) (heads d)", t=frames))
        if self.axis == "time":
            return self.out(rearrange(y, "(b s) heads t d -> b (t s) (heads d)", b=len(x)))
        return self.out(rearrange(y, "b heads n d -> b n (heads d)"))


class CrossAttention(_Attention):
    """Cross-attention of tokens (b, n, d) to text (b, m, d) with a mask (b, m) bool. -> (b, n, d)"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.q_norm, self.k_norm = _norm(width // heads), _norm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        q = self.q_norm(rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.heads))
        k, v = rearrange(self.kv(text), "b m (two heads d) -> two b heads m d", two=2, heads=self.heads)
        y = attend(q, self.k_norm(k), v, text_mask, self.backend)  # (b, heads, n, d)
        return self.out(rearrange(y, "b heads n d -> b n (heads d)"))
