"""Encoder and decoder of OD-VAE: the order of their layers, and which convolutions are causal 3D ones, by variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from odvae.architecture.layers import FrameAttention, NormSiLU, ResnetBlock, make_conv
from odvae.architecture.rates import Halvings
from odvae.architecture.resampling import make_downsamplers, make_upsamplers
from odvae.architecture.streaming import LayerStack, VideoLayer
from odvae.running.errors import InputError

# Which convolutions are temporal (causal 3D) by variant (paper, section 3.2): for the encoder and the decoder, for
# outer (high resolution: conv_in/conv_out side and all levels but the last two) and inner blocks, whether the (first,
# second) convolution of a residual block is. The paper does not specify which half of them variant 2 keeps; here it is
# the first of each block. Layers that halve or double time are temporal in all variants.
ALL, HALF, NONE = (True, True), (True, False), (False, False)
TEMPORAL_CONVS = {
    #   encoder outer, inner   decoder outer, inner
    1: {"encoder": (ALL, ALL), "decoder": (ALL, ALL)},
    2: {"encoder": (HALF, HALF), "decoder": (HALF, HALF)},
    3: {"encoder": (NONE, ALL), "decoder": (NONE, ALL)},
    4: {"encoder": (NONE, ALL), "decoder": (ALL, ALL)},
}


@dataclass(frozen=True)
class Architecture:
    """Sizes and modes of encoder and decoder; ODVAE's docstring describes them.

    Raises InputError for sizes that do not fit each other, and for an unknown mode.
    """

    block_out_channels: Sequence[int]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    variant: int
    norm: Literal["frame", "clip"]
    temporal_upsample: Literal["nearest", "trilinear"]
    temporal_resampling: Literal["joint", "separate"]
    halvings: Halvings

    def __post_init__(self) -> None:
        widths, groups = tuple(self.block_out_channels), self.norm_num_groups
        if len(widths) < 2 or any(width % groups for width in widths):
            raise InputError(
                f"block_out_channels={widths}: needs at least two widths, one for each level, all multiples of "
                f"norm_num_groups={groups}"
            )
        allowed = {
            "variant": TEMPORAL_CONVS,
            "norm": ("frame", "clip"),
            "temporal_upsample": ("nearest", "trilinear"),
            "temporal_resampling": ("joint", "separate"),
        }
        for name, values in allowed.items():
            if (value := getattr(self, name)) not in values:
                raise InputError(f"{name}={value!r}: allowed are {', '.join(map(str, values))}")

    def temporal_convs(self, half: Literal["encoder", "decoder"], level: int) -> tuple[bool, bool]:
        """Whether the two convolutions of each residual block are temporal; `level` counts from full resolution."""
        outer, inner = TEMPORAL_CONVS[self.variant][half]
        return inner if level >= len(self.block_out_channels) - 2 else outer

    def blocks(self, channels: int, out_channels: int, count: int, temporal: tuple[bool, bool]) -> list[ResnetBlock]:
        """`count` residual blocks of a level; the first maps `channels` to `out_channels`."""
        over_time = self.norm_over_time(temporal)
        return [
            ResnetBlock(channels if i == 0 else out_channels, out_channels, self.norm_num_groups, temporal, over_time)
            for i in range(count)
        ]

    def norm_over_time(self, temporal: tuple[bool, bool]) -> bool:
        """Whether the norms of a block with such convolutions take their statistics over the whole clip."""
        return self.norm == "clip" and any(temporal)


class MidBlock(LayerStack):
    """At the lowest resolution: a residual block, attention within each frame, a residual block."""

    def __init__(self, channels: int, architecture: Architecture, temporal: tuple[bool, bool]) -> None:
        super().__init__()
        over_time = architecture.norm_over_time(temporal)
        self.resnets = nn.ModuleList(architecture.blocks(channels, channels, 2, temporal))
        self.attentions = nn.ModuleList([FrameAttention(channels, architecture.norm_num_groups, over_time)])

    def parts(self) -> list[VideoLayer]:
        return [self.resnets[0], self.attentions[0], self.resnets[1]]


class Level(LayerStack):
    """The residual blocks of one resolution, followed by its downsampler or upsampler if there is one."""

    def __init__(self, resnets: Sequence[ResnetBlock]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)

    def parts(self) -> list[VideoLayer]:
        return [*self.resnets, *getattr(self, "downsamplers", []), *getattr(self, "upsamplers", [])]


class Encoder(LayerStack):
    """Video (b, 3, 1 + r*k, h, w) -> moments (b, 2c, 1 + k, h/s, w/s); r and s are the compression ratios."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        widths, separate = architecture.block_out_channels, architecture.temporal_resampling == "separate"
        outer, inner = TEMPORAL_CONVS[architecture.variant]["encoder"]
        self.conv_in = make_conv(outer[0], 3, widths[0])
        self.down_blocks = nn.ModuleList()
        previous = widths[0]
        for i, width in enumerate(widths):
            temporal = architecture.temporal_convs("encoder", i)
            level = Level(architecture.blocks(previous, width, architecture.layers_per_block, temporal))
            if i < len(widths) - 1:
                time, space = architecture.halvings.time[i], architecture.halvings.space[i]
                level.downsamplers = make_downsamplers(width, any(temporal), time, space, separate)
            self.down_blocks.append(level)
            previous = width
        self.mid_block = MidBlock(widths[-1], architecture, inner)
        self.conv_norm_out = NormSiLU(architecture.norm_num_groups, widths[-1], architecture.norm_over_time(inner))
        self.conv_out = make_conv(inner[0], widths[-1], 2 * architecture.latent_channels)

    def parts(self) -> list[VideoLayer | LayerStack]:
        return [
            self.conv_in,  # (b, w0, t, h, w)
            *self.down_blocks,
            self.mid_block,  # (b, w_last, 1 + k, h/s, w/s)
            self.conv_norm_out,
            self.conv_out,  # (b, 2c, 1 + k, h/s, w/s)
        ]


class Decoder(LayerStack):
    """Latents (b, c, 1 + k, h/s, w/s) -> video (b, 3, 1 + r*k, h, w); r and s are the compression ratios."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        widths, separate = architecture.block_out_channels[::-1], architecture.temporal_resampling == "separate"
        trilinear = architecture.temporal_upsample == "trilinear"
        outer, inner = TEMPORAL_CONVS[architecture.variant]["decoder"]
        self.conv_in = make_conv(inner[0], architecture.latent_channels, widths[0])
        self.mid_block = MidBlock(widths[0], architecture, inner)
        self.up_blocks = nn.ModuleList()
        previous = widths[0]  # from the lowest resolution up
        for i, width in zip(range(len(widths))[::-1], widths, strict=True):  # i: the encoder's level of this resolution
            temporal = architecture.temporal_convs("decoder", i)
            level = Level(architecture.blocks(previous, width, architecture.layers_per_block + 1, temporal))
            if i > 0:
                time, space = architecture.halvings.time[i - 1], architecture.halvings.space[i - 1]
                level.upsamplers = make_upsamplers(width, time, space, trilinear, separate)
            self.up_blocks.append(level)
            previous = width
        self.conv_norm_out = NormSiLU(architecture.norm_num_groups, widths[-1], architecture.norm_over_time(outer))
        self.conv_out = make_conv(outer[0], widths[-1], 3)

    def parts(self) -> list[VideoLayer | LayerStack]:
        return [
            self.conv_in,  # (b, w_last, 1 + k, h/s, w/s)
            self.mid_block,
            *self.up_blocks,
            self.conv_norm_out,
            self.conv_out,  # (b, 3, 1 + r*k, h, w)
        ]
