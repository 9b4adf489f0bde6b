"""How a level changes its resolution: space and time by one convolution, or space first and time by its own layer.

"joint" is Open-Sora-Plan v1.2.0's design, and the default. "separate" is v1.1.0's: a 2D layer for space, then a layer
that mixes a fixed resampling of time with a learned one in the share a = sigmoid(mix_factor). Upsampling and the
convolution after it are computed as one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from odvae.layers import (
    CausalConv3d,
    Downsample,
    FrameConv2d,
    Stream,
    VideoLayer,
    conv3d,
    from_frames,
    join_past,
    to_frames,
)

# Doubling repeats each value, so of three taps in a row two meet the same value: adding them up leaves two taps. Which
# two it are differs between even and odd output positions. PHASES[position][tap of two][tap of three]:
PHASES = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])


class Upsample(VideoLayer):
    """Doubles the size, and (`doubles_time`) the frames after the first: t -> 2(t - 1) + 1; then a convolution.

    `trilinear` is the released model's function: frames after the first are interpolated as one block, which sees up
    to one frame ahead. Otherwise (nearest) values are repeated, which is causal.
    """

    def __init__(self, channels: int, sees_time: bool, doubles_time: bool, trilinear: bool) -> None:
        super().__init__()
        self.doubles_time, self.needs_whole_clip = doubles_time, trilinear and doubles_time
        self.width = channels * (8 if doubles_time else 4)
        if sees_time and doubles_time:
            self.conv: VideoLayer = CausalConv3d(channels, channels, 3, padding=(0, 1, 1))
        else:
            self.conv = FrameConv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        if self.needs_whole_clip:
            return self.conv(_interpolate(x))
        if not self.doubles_time:
            return from_frames(doubled_conv2d(to_frames(x), self.conv.weight, self.conv.bias), len(x))
        begins = not stream or self not in stream
        past = stream[self] if stream and self in stream else x[:, :, :1].clone()
        x = join_past(stream, self, past, x, kept=1)
        if isinstance(self.conv, CausalConv3d):
            y = doubled_conv3d(x, self.conv.weight, self.conv.bias)
        else:
            frames = doubled_conv2d(to_frames(x[:, :, 1:]), self.conv.weight, self.conv.bias)
            y = from_frames(frames, len(x)).repeat_interleave(2, dim=2)
        # The video's first frame is not doubled.
        return y[:, :, 1:].contiguous(memory_format=torch.channels_last_3d) if begins else y


def doubled_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution, zero-padded, of pictures doubled by repetition. (n, c, h, w) -> (n, c', 2h, 2w)

    Equal up to rounding to `conv2d(interpolate(x, scale_factor=2), padding=1)` with 4/9 of its multiplications.
    """
    n, _, h, w = x.shape
    x = F.pad(x, (1, 1, 1, 1))
    phases = PHASES.to(weight.device, weight.dtype, non_blocking=True)
    y = None
    for row in (0, 1):
        for column in (0, 1):
            kernel = F.linear(weight.flatten(2), torch.kron(phases[row], phases[column])).unflatten(2, (2, 2))
            part = F.conv2d(x[:, :, row : row + h + 1, column : column + w + 1], kernel, bias)  # (n, c', h, w)
            y = _empty(part, n, len(bias), 2 * h, 2 * w) if y is None else y
            y[:, :, row::2, column::2] = part
    return y


def doubled_conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3x3 convolution of a video doubled in time and space. (b, c, 1 + t, h, w) -> (b, c', 2t, 2h, 2w)

    Causal in time: the first frame of x, which is the one before those that are doubled, is only looked back at. Zero-
    padded in space. Equal up to rounding to the convolution of the repeated values, with 8/27 of its multiplications.
    """
    b, _, frames, h, w = x.shape
    x = F.pad(x, (1, 1, 1, 1))
    phases = PHASES.to(weight.device, weight.dtype, non_blocking=True)
    time_phases = phases.flip(0).flatten(0, 1)  # flipped: a causal kernel lies one position back from a centered one
    y = None
    for row in (0, 1):
        for column in (0, 1):  # both phases of time look at the same frames of x: one convolution
            sums = torch.kron(time_phases, torch.kron(phases[row], phases[column]))  # (16, 27)
            kernel = rearrange(F.linear(weight.flatten(2), sums), "o i (p z y x) -> (p o) i z y x", p=2, z=2, y=2)
            window = x[:, :, :, row : row + h + 1, column : column + w + 1]
            part = conv3d(window, kernel, bias.repeat(2))  # (b, 2c', t, h, w)
            y = _empty(part, b, len(bias), 2 * (frames - 1), 2 * h, 2 * w) if y is None else y
            y[:, :, 0::2, row::2, column::2], y[:, :, 1::2, row::2, column::2] = part.chunk(2, dim=1)
    return y


def _empty(like: Tensor, *shape: int) -> Tensor:
    """Room for values of the type of `like`, channels-last."""
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _interpolate(x: Tensor) -> Tensor:
    """Trilinear doubling of time and size; the first frame's size only."""
    first = F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")
    if x.shape[2] == 1:
        return first
    return torch.cat([first, F.interpolate(x[:, :, 1:], scale_factor=(2, 2, 2), mode="trilinear")], dim=2)


class TimeDownsample(VideoLayer):
    """a * mean of three frames + (1 - a) * convolution, every second frame. (b, c, t, h, w) -> (b, c, (t-1)//2+1, h, w)

    Causal as CausalConv3d is: time is padded in front with copies of the first frame, for the mean too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width, self.halves_time = channels, True
        self.conv = nn.Conv3d(channels, channels, 3, stride=(2, 1, 1), padding=(0, 1, 1))
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        past = stream.get(self) if stream else None
        if past is None:  # the video begins here
            past = torch.cat([x[:, :, :1]] * 2, dim=2)
        x = join_past(stream, self, past, x, kept=1)
        y = conv3d(x, self.conv.weight, self.conv.bias, self.conv.stride, self.conv.padding)
        mix = self.mix_factor.sigmoid()
        return mix * F.avg_pool3d(x, (3, 1, 1), stride=(2, 1, 1)) + (1 - mix) * y


class TimeUpsample(VideoLayer):
    """Doubles the frames after the first, then a * those frames + (1 - a) * their causal convolution.

    (b, c, t, h, w) -> (b, c, 2(t-1)+1, h, w). `trilinear` interpolates the frames after the first as one block, as
    released, and sees up to one frame ahead; otherwise frames are repeated, which is causal.
    """

    def __init__(self, channels: int, trilinear: bool) -> None:
        super().__init__()
        self.width, self.needs_whole_clip = 2 * channels, trilinear
        self.conv = CausalConv3d(channels, channels, 3, padding=(0, 1, 1))
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        begins = stream is None or self not in stream
        first, rest = x[:, :, :begins], x[:, :, begins:]
        if rest.shape[2]:
            rest = self._double(rest)
        x = torch.cat([first, rest], dim=2)
        if stream is not None:
            stream[self] = x[:, :, :0]  # only the fact that the video has begun
        mix = self.mix_factor.sigmoid()
        return mix * x + (1 - mix) * self.conv(x, stream)

    def _double(self, x: Tensor) -> Tensor:
        if self.needs_whole_clip:
            return F.interpolate(x, scale_factor=(2, 1, 1), mode="trilinear")
        return x.repeat_interleave(2, dim=2)


def make_downsamplers(channels: int, sees_time: bool, halves_time: bool, separate: bool) -> nn.ModuleList:
    """The layers that halve the size and, with `halves_time`, the frames after the first."""
    if separate and halves_time:
        return nn.ModuleList([Downsample(channels, sees_time=False, halves_time=False), TimeDownsample(channels)])
    return nn.ModuleList([Downsample(channels, sees_time, halves_time)])


def make_upsamplers(
    channels: int, sees_time: bool, doubles_time: bool, trilinear: bool, separate: bool
) -> nn.ModuleList:
    """The layers that double the size and, with `doubles_time`, the frames after the first."""
    if separate and doubles_time:
        space = Upsample(channels, sees_time=False, doubles_time=False, trilinear=False)
        return nn.ModuleList([space, TimeUpsample(channels, trilinear)])
    return nn.ModuleList([Upsample(channels, sees_time, doubles_time, trilinear)])
