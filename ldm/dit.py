"""A diffusion transformer for video latents (Peebles & Xie 2023, arXiv 2212.09748), conditioned on time and text.

Full attention over time and space with 3D rotary (and, at the input, absolute) positions, adaLN-Zero, cross-attention
to text, qk-norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange, repeat
from timm.layers import Mlp
from torch import Tensor, nn

from odvae.shared.errors import InputError

SUBLAYERS = 3  # self-attention, cross-attention, MLP: each has its shift, scale and gate


def rotary_angles(shape: tuple[int, int, int], head_width: int, theta: float, device: torch.device) -> Tensor:
    """Angles (n, head_width / 2) of a (t, h, w) grid: some pairs turn with t, some with y, the rest with x.

    Positions are whole token steps, so a larger grid extends a smaller one's angles.
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


def rotation(angles: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines and signed sines (n, d) with which `rotate` turns by angles (n, d / 2): once for all blocks."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of channels (one of the first half, one of the second) of x (b, heads, n, d) by a `rotation`."""
    cos, sin = turn
    y = x.float()
    return torch.addcmul(y * cos, y.roll(y.shape[-1] // 2, dims=-1), sin).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads, eps=1e-6), nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        q, k = rotate(self.q_norm(q), turn), rotate(self.k_norm(k), turn)
        y = F.scaled_dot_product_attention(q, k, v)  # (b, heads, n, d)
        return self.out(rearrange(y, "b heads n d -> b n (heads d)"))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads, eps=1e-6), nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        q = self.q_norm(rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.heads))
        k, v = rearrange(self.kv(text), "b m (two heads d) -> two b heads m d", two=2, heads=self.heads)
        y = F.scaled_dot_product_attention(q, self.k_norm(k), v, attn_mask=text_mask[:, None, None, :])
        return self.out(rearrange(y, "b heads n d -> b n (heads d)"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise each token, then scale and shift it by its sample's (b, d)."""
    return torch.addcmul(shift.unsqueeze(1), F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale.unsqueeze(1))


class Block(nn.Module):
    """Three sub-layers, each x + gate * f(modulate(x)); the gates start at zero, so the block starts as identity."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.cross_attention = CrossAttention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio), act_layer=nn.SiLU)
        self.modulation = nn.Linear(width, 3 * SUBLAYERS * width)

    def forward(
        self, x: Tensor, condition: Tensor, text: Tensor, text_mask: Tensor, turn: tuple[Tensor, Tensor]
    ) -> Tensor:
        shift, scale, gate = rearrange(
            self.modulation(condition), "b (kind layer d) -> kind layer b d", kind=3, layer=SUBLAYERS
        )
        gate = gate.unsqueeze(2)  # (3, b, 1, d)
        x = torch.addcmul(x, gate[0], self.attention(modulate(x, shift[0], scale[0]), turn))
        x = torch.addcmul(x, gate[1], self.cross_attention(modulate(x, shift[1], scale[1]), text, text_mask))
        return torch.addcmul(x, gate[2], self.mlp(modulate(x, shift[2], scale[2])))


class DiT(ModelMixin, ConfigMixin):
    """Predicts the velocity of noisy latents (b, c, t, h, w) at noise levels (b,), given text (b, m, text_width).

    Args:
        latent_channels: c.
        patch_size: latent positions a token covers along (t, h, w).
        width, depth, heads, mlp_ratio: of the transformer; width / heads must be even and at least 16.
        text_width: width of the text encoder's embeddings.
        text_tokens: how many text tokens it was trained with.
        rope_theta: base of the rotary frequencies.
        sample_size: latent (t, h, w) it was trained on: what is generated when no size is asked for.
        latents_mean, latents_std: per channel, of the latents it was trained on; it sees (z - mean) / std.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        text_width: int = 64,
        text_tokens: int = 16,
        rope_theta: float = 10000.0,
        sample_size: tuple[int, int, int] = (5, 32, 32),
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2 or width // heads < 16:
            raise InputError(f"width={width}, heads={heads}: width / heads must be an even number of at least 16")
        patch_values = latent_channels * patch_size[0] * patch_size[1] * patch_size[2]
        self.patch_embedding = nn.Linear(patch_values, width)
        self.position_embedding = nn.Linear(width // heads, width)
        self.time_embedding = TimestepEmbedding(256, width)
        self.text_embedding = nn.Sequential(nn.RMSNorm(text_width, eps=1e-6), nn.Linear(text_width, width))
        self.pooled_text_embedding = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_linear = nn.Linear(width, patch_values)
        self.initialize()

    def initialize(self) -> None:
        """Xavier for the matrices; zero for all gates, modulations and the output (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in (self.final_modulation, self.final_linear, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(module.weight)

    def forward(self, latents: Tensor, sigma: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """latents (b, c, t, h, w), sigma (b,) in [0, 1], text (b, m, d), text_mask (b, m) bool -> like latents."""
        grid = self._token_grid(latents)
        pt, ph, pw = self.config.patch_size
        x = rearrange(latents, "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        head_width = self.config.width // self.config.heads
        angles = rotary_angles(grid, head_width, self.config.rope_theta, x.device)  # (n, head_width / 2)
        x = self.patch_embedding(x) + self._where(angles).to(x.dtype)  # (b, n, d)
        text = self.text_embedding(text.to(x.dtype))  # (b, m, d)
        condition, turn = self._condition(sigma, text, text_mask), rotation(angles)  # (b, d), 2 x (n, head_width)
        for block in self.blocks:
            x = block(x, condition, text, text_mask, turn)  # (b, n, d)
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        x = self.final_linear(modulate(x, shift, scale))  # (b, n, c pt ph pw)
        t, h, w = grid
        return rearrange(x, "b (t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)

    def _where(self, angles: Tensor) -> Tensor:
        """Where each token stands, (n, d), from the same angles.

        Rotary attention sees differences of positions only. From those alone a network is slow to find out which frame
        comes first, and so whether a thing moves left or right.
        """
        return self.position_embedding(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.dtype))

    def _condition(self, sigma: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """What modulates every block: time plus the sum of the n text tokens over sqrt(n). (b, d)

        Not their mean: that would make each word's share, and with it what tells two captions apart, 1/n.
        """
        waves = get_timestep_embedding(1000 * sigma, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
        weight = text_mask.to(text.dtype).unsqueeze(-1)
        pooled = (text * weight).sum(1) / weight.sum(1).clamp(min=1).sqrt()
        return F.silu(self.time_embedding(waves.to(text.dtype)) + self.pooled_text_embedding(pooled))

    def _token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels:
            raise InputError(f"latents are (b, {self.config.latent_channels}, t, h, w), found {tuple(latents.shape)}")
        sizes, patch = latents.shape[2:], self.config.patch_size
        if any(size % p for size, p in zip(sizes, patch, strict=True)):
            raise InputError(f"latent sizes {tuple(sizes)} are not multiples of patch_size={tuple(patch)}")
        t, h, w = (size // p for size, p in zip(sizes, patch, strict=True))
        return t, h, w
