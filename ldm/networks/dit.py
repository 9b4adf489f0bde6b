"""A diffusion transformer for video latents (DiT: Peebles & Xie 2023, arXiv 2212.09748).

Absolute position embeddings at the input, 3D RoPE in self-attention, adaLN-Zero (by a layer in each block, or one for
all: PixArt-alpha's adaLN-single, Chen et al. 2023, arXiv 2310.00426), qk-norm, cross-attention to text; attention is
full or factorized over space and time (Latte's first variant: Ma et al. 2024, arXiv 2401.03048).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from ldm.networks.attention import AttentionAxis, CrossAttention, SelfAttention, rope_angles, rope_cos_sin
from ldm.networks.attention_backends import AttentionBackendMixin
from ldm.networks.conditioning import NO_LABEL, Condition, concat_first_frame
from ldm.networks.lora import FusedProjectionsLoraMixin
from odvae.running.errors import InputError


def norm_and_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of tokens (b, n, d), then scale and shift by those of their sample, (b, d)."""
    return torch.addcmul(shift.unsqueeze(1), F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale.unsqueeze(1))


class MLP(nn.Module):
    """Two linear layers with SiLU between them. (b, n, d) -> (b, n, d)

    Not timm's: a sampling process would import all of timm for it, and wandb with that.
    """

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)))


class Block(nn.Module):
    """Transformer block: self-attention, cross-attention to text where `has_text`, MLP.

    Each sublayer is x + gate * f(norm_and_modulate(x)); gates are initialized to zero, so the block starts as the
    identity. Shifts, scales and gates are computed from the embedding; or, with `shared_modulation`, those of the
    embedding's place in `forward` are added to a learned table of the block's own.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        axis: AttentionAxis,
        has_text: bool,
        shared_modulation: bool = False,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, axis)
        self.cross_attention = CrossAttention(width, heads) if has_text else None
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.sublayers = 3 if has_text else 2
        size = 3 * self.sublayers * width
        self.modulation = None if shared_modulation else nn.Linear(width, size)
        if shared_modulation:
            self.modulation_table = nn.Parameter(torch.zeros(size))

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        text: Tensor | None,
        text_mask: Tensor | None,
        rope: tuple[Tensor, Tensor],
        frames: int,
    ) -> Tensor:
        shift, scale, gate = self._modulate(embedding, x.shape[-1])  # each (sublayers, b, d)
        gate = gate.unsqueeze(2)  # (sublayers, b, 1, d)
        x = torch.addcmul(x, gate[0], self.attention(norm_and_modulate(x, shift[0], scale[0]), rope, frames))
        if self.cross_attention is not None:
            x = torch.addcmul(
                x, gate[1], self.cross_attention(norm_and_modulate(x, shift[1], scale[1]), text, text_mask)
            )
        return torch.addcmul(x, gate[-1], self.mlp(norm_and_modulate(x, shift[-1], scale[-1])))  # (b, n, d)

    def _modulate(self, embedding: Tensor, width: int) -> Tensor:
        """Shift, scale and gate of each sublayer, (3, sublayers, b, d)."""
        if self.modulation is not None:
            return rearrange(
                self.modulation(embedding), "b (kind layer d) -> kind layer b d", kind=3, layer=self.sublayers
            )
        shared = rearrange(embedding, "b (kind layer d) -> kind layer b d", kind=3, d=width)
        step = (shared.shape[1] - 1) // (self.sublayers - 1)  # 2 in a block that has no cross-attention, but others do
        own = rearrange(self.modulation_table, "(kind layer d) -> kind layer 1 d", kind=3, d=width)
        return shared[:, ::step] + own.to(shared.dtype)


class DiT(AttentionBackendMixin, ModelMixin, ConfigMixin, FusedProjectionsLoraMixin):
    """Predicts the training target (velocity, noise, v or x0) from noisy latents (b, c, t, h, w), timesteps (b,) and
    conditioning.

    Args:
        latent_channels: channels c of the latents.
        patch_size: latent positions per token along (t, h, w).
        width, depth, heads, mlp_ratio: size of the transformer; width / heads must be even and at least 16.
        attention: "full", every block attends to all tokens; "factorized", blocks attend alternately over space (the
            tokens of a frame) and over time (the tokens at a position in all frames).
        text_width: width of the text encoder's embeddings; None: no text conditioning.
        text_tokens: number of text tokens in training.
        class_names: name of each class index; None: no class conditioning.
        first_frame: whether the network can be conditioned on the first latent frame.
        rope_theta: base of the RoPE frequencies.
        modulation: "block", each block has a layer that computes its shifts, scales and gates from the embedding;
            "single" (adaLN-single), one layer computes them for all blocks, each of which adds a table of its own.
        sample_size: latent (t, h, w) in training, and the default for sampling.
        latents_mean, latents_std: per channel, of the training latents z; the network's input is (z - mean) / std.
        objective: the training objective, as a dict of `ObjectiveSettings`.

    Raises InputError for widths that the heads do not divide. diffusers' `enable_gradient_checkpointing()`,
    `compile_repeated_blocks()` and `set_attention_backend()` are supported.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("Block",)
    _no_split_modules = ("Block",)
    lora_targets = ("qkv", "q", "kv", "out")
    """The layers that get a LoRA adapter by default: those of the attention."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        attention: Literal["full", "factorized"] = "full",
        text_width: int | None = 64,
        text_tokens: int = 16,
        class_names: list[str] | None = None,
        first_frame: bool = False,
        rope_theta: float = 10000.0,
        sample_size: tuple[int, int, int] = (5, 32, 32),
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        objective: dict[str, Any] | None = None,
        modulation: Literal["block", "single"] = "block",
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2 or width // heads < 16:
            raise InputError(f"width={width}, heads={heads}: width / heads must be an even number of at least 16")
        patch_volume = patch_size[0] * patch_size[1] * patch_size[2]
        input_channels = 2 * latent_channels + 1 if first_frame else latent_channels
        self.patch_embedding = nn.Linear(input_channels * patch_volume, width)
        self.position_embedding = nn.Linear(width // heads, width)
        self.time_embedding = TimestepEmbedding(256, width)
        if text_width is not None:
            self.text_embedding = nn.Sequential(nn.RMSNorm(text_width, eps=1e-6), nn.Linear(text_width, width))
            self.pooled_text_embedding = nn.Linear(width, width)
        if class_names is not None:
            self.class_embedding = nn.Embedding(len(class_names) + 1, width)  # the last is the null class
        single = modulation == "single"
        if single:
            self.shared_modulation = nn.Linear(width, 3 * (2 if text_width is None else 3) * width)
        axes: tuple[AttentionAxis, ...] = ("all", "all") if attention == "full" else ("space", "time")
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, axis, text_width is not None and axis != "time", single)
            for axis in (axes[i % 2] for i in range(depth))
        )
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_linear = nn.Linear(width, latent_channels * patch_volume)
        self.gradient_checkpointing = False
        self.initialize()

    def initialize(self) -> None:
        """Xavier initialization of matrices; zeros for all modulations, gates and the output (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        single = self.config.modulation == "single"
        modulations = [self.shared_modulation] if single else [block.modulation for block in self.blocks]
        # From it alone the network knows which frame comes first: strong from the start (LOG.md, 2026-11-26).
        self.position_embedding.weight.data *= 4
        for module in (self.final_modulation, self.final_linear, *modulations):
            nn.init.zeros_(module.weight)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        condition: Condition | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The prediction (b, c, t, h, w) as `.sample`, or as a tuple of one.

        Args:
            hidden_states: noisy latents (b, c, t, h, w).
            timestep: (b,) from 0 (data) to 1 (noise).
            condition: all conditions in one; or else, named as in diffusers:
            encoder_hidden_states, encoder_attention_mask: embedded text (b, m, d), and which tokens are real, (b, m).
            class_labels: (b,) class indices, -1 for none.

        Raises InputError for latents that the patches do not divide, and for conditions that the network does not take.
        """
        condition = Condition.from_arguments(condition, encoder_hidden_states, encoder_attention_mask, class_labels)
        prediction, _ = self.predict_with_features(hidden_states, timestep, condition)
        return Transformer2DModelOutput(sample=prediction) if return_dict else (prediction,)

    def predict_with_features(
        self, latents: Tensor, time: Tensor, condition: Condition, after_block: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The prediction (b, c, t, h, w), and the tokens (b, n, d) after a block, counted from 1, if one is named."""
        self._check_condition(condition)
        grid = self.token_grid(latents)  # t, h, w in tokens
        if self.config.first_frame:
            latents = concat_first_frame(latents, condition)  # (b, 2c + 1, t, h, w)
        pt, ph, pw = self.config.patch_size
        x = rearrange(latents, "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        head_width = self.config.width // self.config.heads
        angles = rope_angles(grid, head_width, self.config.rope_theta, x.device)  # (n, head_width / 2)
        x = self.patch_embedding(x) + self._embed_positions(angles).to(x.dtype)  # (b, n, d)
        text = None if condition.text is None else self.text_embedding(condition.text.to(x.dtype))  # (b, m, d)
        embedding = self._embed_condition(time, text, condition, x.dtype)  # (b, d)
        rope = rope_cos_sin(angles)  # 2 x (n, 1, head_width)
        modulation = self.shared_modulation(embedding) if self.config.modulation == "single" else embedding
        features = None
        for number, block in enumerate(self.blocks, start=1):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, modulation, text, condition.text_mask, rope, grid[0])
            else:
                x = block(x, modulation, text, condition.text_mask, rope, grid[0])  # (b, n, d)
            features = x if number == after_block else features
        shift, scale = self.final_modulation(embedding).chunk(2, dim=-1)
        x = self.final_linear(norm_and_modulate(x, shift, scale))  # (b, n, c pt ph pw)
        sizes = dict(zip(("t", "h", "w", "pt", "ph", "pw"), (*grid, pt, ph, pw), strict=True))
        return rearrange(x, "b (t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)", **sizes), features

    def _embed_positions(self, angles: Tensor) -> Tensor:
        """Absolute position embeddings (n, d), computed from the RoPE angles.

        RoPE encodes only differences of positions, from which a network is slow to learn which frame comes first, and
        so whether an object moves left or right (LOG.md, 2026-11-23).
        """
        return self.position_embedding(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.dtype))

    def _embed_condition(self, time: Tensor, text: Tensor | None, condition: Condition, dtype: torch.dtype) -> Tensor:
        """The conditioning vector (b, d) of adaLN: timestep, plus the text tokens' sum over sqrt(n) or the class.

        Not the mean over tokens: each word would contribute only 1/n, and different captions would hardly differ.
        """
        waves = get_timestep_embedding(1000 * time, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
        embedding = self.time_embedding(waves.to(dtype))
        if text is not None and condition.text_mask is not None:
            weight = condition.text_mask.to(text.dtype).unsqueeze(-1)
            pooled = (text * weight).sum(1) / weight.sum(1).clamp(min=1).sqrt()
            embedding = embedding + self.pooled_text_embedding(pooled)
        if condition.label is not None:
            row = torch.where(condition.label == NO_LABEL, self.class_embedding.num_embeddings - 1, condition.label)
            embedding = embedding + self.class_embedding(row)
        return F.silu(embedding)

    def token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        """The latents' (t, h, w) in tokens. Raises InputError for latents that the patches do not divide."""
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels:
            raise InputError(f"latents are (b, {self.config.latent_channels}, t, h, w), found {tuple(latents.shape)}")
        sizes, patch = latents.shape[2:], self.config.patch_size
        if any(size % p for size, p in zip(sizes, patch, strict=True)):
            raise InputError(f"latent sizes {tuple(sizes)} are not multiples of patch_size={tuple(patch)}")
        t, h, w = (size // p for size, p in zip(sizes, patch, strict=True))
        return t, h, w

    def _check_condition(self, condition: Condition) -> None:
        takes = {
            "text": self.config.text_width is not None,
            "label": self.config.class_names is not None,
            "first_frame": self.config.first_frame,
        }
        for name, taken in takes.items():
            if (getattr(condition, name) is not None) != taken:
                raise InputError(f"this network {'needs' if taken else 'does not take'} {name} conditioning")
