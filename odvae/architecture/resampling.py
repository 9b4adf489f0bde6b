"""Spatial and temporal downsampling and upsampling layers of OD-VAE.

"joint" resampling, the default, is the design of Open-Sora-Plan v1.2.0: one convolution resamples space and time.
"separate" is that of v1.1.0: a 2D layer resamples space, then another layer resamples time and outputs
a * (fixed resampling) + (1 - a) * (learned resampling), a = sigmoid(mix_factor). Upsampling and the convolution after
it are computed in one operation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from odvae.architecture.layers import (
    CausalConv3d,
    Conv3d,
    Downsample,
    FrameConv2d,
    conv3d,
    from_frames,
    laid_out_weight,
    make_conv,
    to_frames,
)
from odvae.architecture.streaming import StreamCache, VideoLayer, join_past, with_copies_in_front


def upsampling_phases(like: Tensor) -> Tensor:
    """How a kernel's three taps become two where it follows nearest upsampling by 2, which repeats each value: two of
    the taps are applied to the same value and can be added up. [parity of the position][tap of two][tap of three],
    zeros and ones with the device and dtype of `like`.

    Tap t becomes tap (t + 1) // 2 of two at even positions, t // 2 at odd ones. Computed where it is needed: to copy a
    table to a GPU in each call would let the GPU wait for the CPU.
    """
    parity, two, three = (torch.arange(n, device=like.device) for n in (2, 2, 3))
    return ((three + 1 - parity.view(2, 1, 1)) // 2 == two.view(2, 1)).to(like.dtype)


class DoublingFrameConv2d(FrameConv2d):
    """Nearest upsampling by 2 in space, then a 3x3 convolution of each frame. (b, c, t, h, w) -> (b, c', t, 2h, 2w)

    The fused computation is the module's own forward: hooks that bring or cast its weights (offloading, layerwise
    casting, FSDP) run when a module is called, not when another one reads its weights.
    """

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        return from_frames(doubled_conv2d(to_frames(x), laid_out_weight(self), self.bias), len(x))


class DoublingConv3d(Conv3d):
    """Nearest upsampling by 2 in time and space, then a 3x3x3 convolution: `doubled_conv3d`, as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return doubled_conv3d(x, laid_out_weight(self), self.bias)


class Upsample(VideoLayer):
    """Doubles height and width and, with `doubles_time`, the frames after the first (2(t - 1) + 1); then a convolution.

    With `doubles_space=False` only time is doubled. A layer that doubles time has a causal 3D convolution, since equal
    frames would remain equal in layers that work frame by frame.

    `trilinear`, as in the released models: frames after the first are interpolated as one block, so that a frame
    depends on up to one later frame. Otherwise values are repeated (nearest), which is causal.
    """

    def __init__(self, channels: int, doubles_time: bool, trilinear: bool, doubles_space: bool = True) -> None:
        super().__init__()
        self.doubles_time, self.doubles_space = doubles_time, doubles_space
        self.needs_whole_clip = trilinear and doubles_time
        self.values_per_position = channels * (2 if doubles_time else 1) * (4 if doubles_space else 1)
        if self.needs_whole_clip or not doubles_space:
            self.conv: nn.Module = make_conv(True, channels, channels)
        elif doubles_time:
            self.conv = DoublingConv3d(channels, channels, 3, padding=(0, 1, 1))
        else:
            self.conv = DoublingFrameConv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        if self.needs_whole_clip:
            return self.conv(_interpolate(x, 2 if self.doubles_space else 1))
        if not self.doubles_space:
            begins = cache is None or cache.begins(self)
            frames = x.repeat_interleave(2, dim=2)[:, :, int(begins) :]  # the first frame of the video is not doubled
            return self.conv(frames.contiguous(memory_format=torch.channels_last_3d), cache)
        if not self.doubles_time:
            return self.conv(x)
        past = None if cache is None else cache.get(self)
        begins = past is None
        if cache is None:
            x = with_copies_in_front(x, 1)
        else:
            x = join_past(cache, self, x[:, :, :1].clone() if past is None else past, x, kept=1)
        y = self.conv(x)
        # The first frame of the video is not doubled.
        return y[:, :, 1:].contiguous(memory_format=torch.channels_last_3d) if begins else y


def doubled_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Nearest upsampling by 2, then a zero-padded 3x3 convolution, in one operation. (n, c, h, w) -> (n, c', 2h, 2w)

    Equal up to rounding to `conv2d(interpolate(x, scale_factor=2), padding=1)`, with 4/9 of the multiplications.
    """
    n, _, h, w = x.shape
    x = F.pad(x, (1, 1, 1, 1))
    phases = upsampling_phases(weight)
    y = None
    for row in (0, 1):
        for column in (0, 1):
            kernel = F.linear(weight.flatten(2), torch.kron(phases[row], phases[column])).unflatten(2, (2, 2))
            part = F.conv2d(x[:, :, row : row + h + 1, column : column + w + 1], kernel, bias)  # (n, c', h, w)
            y = _empty(part, n, len(bias), 2 * h, 2 * w) if y is None else y
            y[:, :, row::2, column::2] = part
    return y


def doubled_conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Nearest upsampling by 2 in time and space, then a 3x3x3 convolution. (b, c, 1 + t, h, w) -> (b, c', 2t, 2h, 2w)

    Causal in time: x starts with the frame before those that are upsampled, which the convolution only looks back at.
    Zero-padded in space. Equal up to rounding to upsampling followed by convolution, with 8/27 of the multiplications.
    """
    b, _, frames, h, w = x.shape
    x = F.pad(x, (1, 1, 1, 1))
    phases = upsampling_phases(weight)
    time_phases = phases.flip(0).flatten(0, 1)  # flipped: a causal kernel is shifted back by one position
    y = None
    for row in (0, 1):
        for column in (0, 1):  # both temporal phases use the same frames of x, so one convolution computes both
            sums = torch.kron(time_phases, torch.kron(phases[row], phases[column]))  # (16, 27)
            kernel = rearrange(F.linear(weight.flatten(2), sums), "o i (p z y x) -> (p o) i z y x", p=2, z=2, y=2)
            window = x[:, :, :, row : row + h + 1, column : column + w + 1]
            part = conv3d(window, kernel, bias.repeat(2))  # (b, 2c', t, h, w)
            y = _empty(part, b, len(bias), 2 * (frames - 1), 2 * h, 2 * w) if y is None else y
            y[:, :, 0::2, row::2, column::2], y[:, :, 1::2, row::2, column::2] = part.chunk(2, dim=1)
    return y


def _empty(like: Tensor, *shape: int) -> Tensor:
    """An uninitialized channels-last tensor with the dtype and device of `like`."""
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _interpolate(x: Tensor, space: int) -> Tensor:
    """Trilinear upsampling by 2 in time and by `space` in space; the first frame only in space."""
    first = F.interpolate(x[:, :, :1], scale_factor=(1, space, space), mode="trilinear")
    if x.shape[2] == 1:
        return first
    return torch.cat([first, F.interpolate(x[:, :, 1:], scale_factor=(2, space, space), mode="trilinear")], dim=2)


class TimeDownsample(VideoLayer):
    """Temporal downsampling by 2 (v1.1.0): a * mean of three frames + (1 - a) * strided convolution.

    (b, c, t, h, w) -> (b, c, (t - 1) // 2 + 1, h, w). Causal like CausalConv3d: time is padded in front with copies of
    the first frame, for the mean too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.values_per_position, self.halves_time = channels, True
        self.conv = Conv3d(channels, channels, 3, stride=(2, 1, 1), padding=(0, 1, 1))
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        if cache is None:
            x = with_copies_in_front(x, 2)
        else:
            past = cache.get(self)
            if past is None:  # the video begins here
                past = torch.cat([x[:, :, :1]] * 2, dim=2)
            x = join_past(cache, self, past, x, kept=1)
        y = self.conv(x)
        mix = self.mix_factor.sigmoid()
        return mix * F.avg_pool3d(x, (3, 1, 1), stride=(2, 1, 1)) + (1 - mix) * y


class TimeUpsample(VideoLayer):
    """Temporal upsampling by 2 of the frames after the first (v1.1.0): a * frames + (1 - a) * causal convolution.

    (b, c, t, h, w) -> (b, c, 2(t - 1) + 1, h, w). `trilinear`, as in the released model: the frames after the first are
    interpolated as one block, so that a frame depends on up to one later frame. Otherwise frames are repeated
    (nearest), which is causal.
    """

    def __init__(self, channels: int, trilinear: bool) -> None:
        super().__init__()
        self.values_per_position, self.needs_whole_clip = 2 * channels, trilinear
        self.conv = CausalConv3d(channels, channels, 3, padding=(0, 1, 1))
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        begins = cache is None or cache.begins(self)
        first, rest = x[:, :, :begins], x[:, :, begins:]
        if rest.shape[2]:
            rest = self._double(rest)
        x = torch.cat([first, rest], dim=2)
        mix = self.mix_factor.sigmoid()
        return mix * x + (1 - mix) * self.conv(x, cache)

    def _double(self, x: Tensor) -> Tensor:
        if self.needs_whole_clip:
            return F.interpolate(x, scale_factor=(2, 1, 1), mode="trilinear")
        return x.repeat_interleave(2, dim=2)


def make_downsamplers(
    channels: int, temporal: bool, halves_time: bool, halves_space: bool, separate: bool
) -> nn.ModuleList:
    """The layers that halve time, that is the number of frames after the first, and space; none if neither."""
    if not (separate and halves_time):
        halves = halves_time or halves_space
        return nn.ModuleList([Downsample(channels, temporal, halves_time, halves_space)] if halves else [])
    space = [Downsample(channels, temporal=False, halves_time=False)] if halves_space else []
    return nn.ModuleList([*space, TimeDownsample(channels)])


def make_upsamplers(
    channels: int, doubles_time: bool, doubles_space: bool, trilinear: bool, separate: bool
) -> nn.ModuleList:
    """The layers that double time, that is the number of frames after the first, and space; none if neither."""
    if not (separate and doubles_time):
        doubles = doubles_time or doubles_space
        return nn.ModuleList([Upsample(channels, doubles_time, trilinear, doubles_space)] if doubles else [])
    space = [Upsample(channels, doubles_time=False, trilinear=False)] if doubles_space else []
    return nn.ModuleList([*space, TimeUpsample(channels, trilinear)])
