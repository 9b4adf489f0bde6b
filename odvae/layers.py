"""The layers of OD-VAE. Videos are (b, c, t, h, w) throughout; `frame by frame` layers fold t into the batch.

Every layer takes an optional `stream`: a dict in which it keeps the few frames that the next piece of the same video
still needs. A video given in pieces with one dict gives the same frames as the whole video without.
Tensor names are those of diffusers' AutoencoderKL, so an image VAE's weights find their place by name.

Memory layout: all convolution weights are kept channels-last. A frame-by-frame view of a channels-last video costs
nothing, so the 2D layers, the per-frame norms and the 3D convolutions follow each other without copies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Stream = dict[nn.Module, Tensor]


class FrameConv2d(nn.Conv2d):
    """A 2D convolution on every frame. (b, c, t, h, w) -> (b, c', t, h', w')"""

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", b=x.shape[0])


class CausalConv3d(nn.Conv3d):
    """A 3D convolution that never sees a later frame. (b, c, t, h, w) -> (b, c', (t - 1) // stride + 1, h', w')

    Time is padded in front only, with copies of the first frame; space with zeros. So an image is a video with
    t = 1, and 1 + k*stride frames become 1 + k. In a stream, later pieces hold a multiple of stride frames.
    """

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        past = None if stream is None else stream.get(self)
        if past is None:  # the video begins here
            past = x[:, :, :1].expand(-1, -1, kernel - 1, -1, -1)
        x = torch.cat([past, x], dim=2) if past.shape[2] else x
        if stream is not None:
            stream[self] = x[:, :, x.shape[2] - (kernel - stride) :]
        return super().forward(x)


def make_conv(temporal: bool, channels: int, out_channels: int, kernel: int = 3) -> nn.Module:
    """A size-keeping convolution that sees time, or one that works frame by frame."""
    pad = kernel // 2
    if temporal:
        return CausalConv3d(channels, out_channels, kernel, padding=(0, pad, pad))
    return FrameConv2d(channels, out_channels, kernel, padding=pad)


class VideoGroupNorm(nn.GroupNorm):
    """Group norm with statistics of each frame, or (`over_time`) of the whole clip, as the released model has it.

    Over time it lets every frame see every other: such a model is not causal and cannot be streamed.
    """

    def __init__(self, groups: int, channels: int, over_time: bool) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.over_time = over_time

    def forward(self, x: Tensor) -> Tensor:
        if self.over_time:
            return super().forward(x)
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", b=x.shape[0])


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input. `temporal` says which of the two convs see time."""

    def __init__(
        self, channels: int, out_channels: int, groups: int, temporal: tuple[bool, bool], over_time: bool
    ) -> None:
        super().__init__()
        self.norm1 = VideoGroupNorm(groups, channels, over_time)
        self.conv1 = make_conv(temporal[0], channels, out_channels)
        self.norm2 = VideoGroupNorm(groups, out_channels, over_time)
        self.conv2 = make_conv(temporal[1], out_channels, out_channels)
        if channels != out_channels:
            self.conv_shortcut = make_conv(temporal[0], channels, out_channels, kernel=1)
        else:
            self.conv_shortcut = None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)), stream)
        y = self.conv2(F.silu(self.norm2(y)), stream)
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x, stream))


class FrameAttention(nn.Module):
    """Self-attention among the pixels of each frame, one head, plus the input. (b, c, t, h, w)"""

    def __init__(self, channels: int, groups: int, over_time: bool) -> None:
        super().__init__()
        self.group_norm = VideoGroupNorm(groups, channels, over_time)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, h, _ = x.shape
        tokens = rearrange(self.group_norm(x), "b c t h w -> (b t) 1 (h w) c")
        y = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + rearrange(self.to_out[0](y), "(b t) 1 (h w) c -> b c t h w", b=b, h=h)


class Downsample(nn.Module):
    """Halves the size, and (`temporal`) the frames after the first. Zeros are padded right and below by one."""

    def __init__(self, channels: int, sees_time: bool, halves_time: bool) -> None:
        super().__init__()
        if sees_time or halves_time:
            self.conv = CausalConv3d(channels, channels, 3, stride=(2 if halves_time else 1, 2, 2))
        else:
            self.conv = FrameConv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)), stream)


class Upsample(nn.Module):
    """Doubles the size, and (`doubles_time`) the frames after the first: t -> 2(t - 1) + 1; then a convolution.

    `trilinear` is the released model's function: frames after the first are interpolated as one block, which sees up
    to one frame ahead. `nearest` repeats frames and is causal.
    """

    def __init__(self, channels: int, sees_time: bool, doubles_time: bool, trilinear: bool) -> None:
        super().__init__()
        self.doubles_time, self.trilinear = doubles_time, trilinear
        if sees_time and doubles_time:
            self.conv: nn.Module = CausalConv3d(channels, channels, 3, padding=(0, 1, 1))
        else:
            self.conv = FrameConv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        if self.trilinear and self.doubles_time:
            return self.conv(self._trilinear(x), stream)
        x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        if self.doubles_time:
            first = stream is None or self not in stream
            x = (
                torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(2, dim=2)], 2)
                if first
                else x.repeat_interleave(2, 2)
            )
            if stream is not None:
                stream[self] = x[:, :, :0]  # only the fact that the video has begun
        return self.conv(x, stream)

    @staticmethod
    def _trilinear(x: Tensor) -> Tensor:
        first = F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")
        if x.shape[2] == 1:
            return first
        return torch.cat([first, F.interpolate(x[:, :, 1:], scale_factor=(2, 2, 2), mode="trilinear")], dim=2)


def keep_channels_last(model: nn.Module) -> None:
    """Lay the convolution weights out channels-last (values and names unchanged): faster on CPU and tensor cores.

    Convolutions from or to pixels keep their layout: with so few channels the kernels return contiguous gradients.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and min(module.in_channels, module.out_channels) >= 8:
            layout = torch.channels_last_3d if isinstance(module, nn.Conv3d) else torch.channels_last
            module.weight.data = module.weight.data.to(memory_format=layout)
