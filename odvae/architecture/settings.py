"""Settings of the VAE's network: its sizes, modes and compression rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from odvae.architecture.rates import Halvings, choose_halvings
from odvae.running.settings import Settings


class ModelSettings(Settings):
    variant: Literal[1, 2, 3, 4] = 4
    """Which convolutions are temporal, that is causal 3D (paper, section 3.2): 1: all; 2: half of them; 3: those of the
    inner blocks; 4: those of the encoder's inner blocks and of the whole decoder."""
    block_out_channels: tuple[int, ...] = Field((128, 256, 512, 512), min_length=2)
    """Channels of the levels, from full resolution down. 8x in space needs four levels, 16x five."""
    layers_per_block: int = Field(2, ge=1)
    """Residual blocks per level in the encoder; the decoder has one more."""
    latent_channels: int = Field(4, ge=1)
    """Channels of the latents."""
    norm_num_groups: int = Field(32, ge=1)
    """Groups of every group norm."""
    norm: Literal["frame", "clip"] | None = None
    """Group norm statistics: of each frame (causal, can be streamed) or of the whole clip (the released models); null:
    frame, or with init_from those of the loaded VAE."""
    temporal_upsample: Literal["nearest", "trilinear"] | None = None
    """Upsampling of time in the decoder: "nearest" is causal, "trilinear" is as in the released models; null: nearest,
    or with init_from that of the loaded VAE."""
    temporal_compression_ratio: int = 4
    """Frames that become one latent frame, after the first: 1, 2, 4 or 8. Clips have a multiple of it plus one."""
    spatial_compression_ratio: int = 8
    """Pixels that become one latent position, in height and in width: 4, 8, 16 or 32."""
    temporal_downsample: tuple[bool, ...] | None = None
    """For each level but the last, whether time is halved after it; null: after the last of them (for 4x: after levels
    1 and 2 of 0 to 3), or with init_from after those of the loaded VAE first."""
    spatial_downsample: tuple[bool, ...] | None = None
    """For each level but the last, whether space is halved after it; null: after the first."""

    @property
    def halvings(self) -> Halvings:
        """Which levels halve time and space."""
        return choose_halvings(
            len(self.block_out_channels),
            self.temporal_compression_ratio,
            self.spatial_compression_ratio,
            self.temporal_downsample,
            self.spatial_downsample,
        )

    @model_validator(mode="after")
    def _levels_give_the_rates(self) -> ModelSettings:
        assert self.halvings  # raises InputError, a ValueError
        return self

    @model_validator(mode="after")
    def _widths_fit_the_groups(self) -> ModelSettings:
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels has {width}, which norm_num_groups={self.norm_num_groups} does not divide"
                )
        return self

    def arguments(self, loaded: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The arguments of ODVAE. `norm` and `temporal_upsample` that are null are those of `loaded`, the config of the
        VAE whose weights are loaded, or causal."""
        defaults = loaded or {"norm": "frame", "temporal_upsample": "nearest"}
        chosen = {key: getattr(self, key) or defaults[key] for key in ("norm", "temporal_upsample")}
        return self.model_dump() | chosen
