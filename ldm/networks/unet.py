"""diffusers' 3D UNet (Wang et al. 2023, arXiv 2308.06571) with the same interface as the DiT."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from torch import Tensor, nn

from ldm.networks.attention_backends import AttentionBackendMixin, HasAttention, attention_kernel
from ldm.networks.conditioning import NO_LABEL, Condition, concat_first_frame
from odvae.running.errors import InputError


class UNet(AttentionBackendMixin, HasAttention, ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the training target (velocity, noise, v or x0) from noisy latents (b, c, t, h, w), timesteps (b,) and
    conditioning.

    Args:
        latent_channels: channels c of the latents.
        widths: channels per level; every level but the last has attention, and halves height and width.
        layers_per_level: residual blocks per level.
        head_width: width of an attention head.
        norm_groups: groups of the group norms.
        text_width, text_tokens, class_names, first_frame, sample_size, latents_mean, latents_std, objective: as in DiT.

    diffusers' blocks take no text mask, so padding tokens are replaced by a learned null token. A class is one token;
    without text and classes, the null token is the only one.
    """

    _no_split_modules = (
        "CrossAttnDownBlock3D",
        "DownBlock3D",
        "UNetMidBlock3DCrossAttn",
        "CrossAttnUpBlock3D",
        "UpBlock3D",
    )
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    """As of DiT."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        widths: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_level: int = 2,
        head_width: int = 64,
        norm_groups: int = 32,
        text_width: int | None = 64,
        text_tokens: int = 16,
        class_names: list[str] | None = None,
        first_frame: bool = False,
        sample_size: tuple[int, int, int] = (5, 32, 32),
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
        objective: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if any(width % norm_groups or width % head_width for width in widths):
            raise InputError(
                f"widths={tuple(widths)}: norm_groups={norm_groups} and head_width={head_width} must divide each"
            )
        token_width = widths[0]
        deeper = len(widths) - 1
        self.unet = UNet3DConditionModel(
            in_channels=2 * latent_channels + 1 if first_frame else latent_channels,
            out_channels=latent_channels,
            block_out_channels=tuple(widths),
            down_block_types=("CrossAttnDownBlock3D",) * deeper + ("DownBlock3D",),
            up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * deeper,
            layers_per_block=layers_per_level,
            norm_num_groups=norm_groups,
            cross_attention_dim=token_width,
            attention_head_dim=head_width,
        )
        for module in self.unet.modules():
            if isinstance(module, ModelMixin):
                module._no_split_modules = self._no_split_modules  # diffusers' classes name none
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # diffusers' temporal layers have 0.1, whose noise would not be a function of the step
        self.null_token = nn.Parameter(0.02 * torch.randn(token_width))  # for padding, and for no class
        if text_width is not None:
            self.text_embedding = nn.Sequential(nn.RMSNorm(text_width, eps=1e-6), nn.Linear(text_width, token_width))
        if class_names is not None:
            self.class_embedding = nn.Embedding(len(class_names), token_width)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        condition: Condition | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[Tensor]:
        """The prediction (b, c, t, h, w) as `.sample`, or as a tuple of one; the arguments are those of DiT.forward.

        Raises InputError for latents that the levels cannot halve, and where a condition is missing.
        """
        condition = Condition.from_arguments(condition, encoder_hidden_states, encoder_attention_mask, class_labels)
        prediction = self._predict(sample, timestep, condition)
        return UNet3DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _predict(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        self.token_grid(latents)
        if self.config.first_frame:
            latents = concat_first_frame(latents, condition)  # (b, 2c + 1, t, h, w)
        tokens = self._condition_tokens(condition, len(latents))  # (b, m, d)
        with attention_kernel(self.backend):
            return self.unet(latents, 1000 * time, tokens, return_dict=False)[0]

    def _condition_tokens(self, condition: Condition, batch: int) -> Tensor:
        if self.config.text_width is not None:
            if condition.text is None or condition.text_mask is None:
                raise InputError("this network needs text conditioning")
            embedded = self.text_embedding(condition.text.to(self.dtype))
            return torch.where(condition.text_mask.unsqueeze(-1), embedded, self.null_token)
        if self.config.class_names is not None:
            if condition.label is None:
                raise InputError("this network needs class conditioning")
            embedded = self.class_embedding(condition.label.clamp(min=0))
            return torch.where((condition.label == NO_LABEL).unsqueeze(-1), self.null_token, embedded).unsqueeze(1)
        return self.null_token.expand(batch, 1, -1)

    def token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        """The latents' (t, h, w): each position is a token. Raises InputError where the levels cannot halve them."""
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels:
            raise InputError(f"latents are (b, {self.config.latent_channels}, t, h, w), found {tuple(latents.shape)}")
        t, h, w = latents.shape[2:]
        factor = 2 ** (len(self.config.widths) - 1)
        if h % factor or w % factor:
            raise InputError(f"latent height and width {h}x{w} must be multiples of {factor}: the UNet halves them")
        return t, h, w
