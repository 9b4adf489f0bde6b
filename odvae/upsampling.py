"""The decoder's upsampling: doubling of size and time, and the convolution after it, computed as one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from odvae.layers import CausalConv3d, FrameConv2d, Stream, VideoLayer, from_frames, to_frames

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
        past = None if stream is None else stream.get(self)
        if stream is not None:
            stream[self] = x[:, :, -1:].clone()
        if isinstance(self.conv, CausalConv3d):
            before = x[:, :, :1] if past is None else past
            y = doubled_conv3d(torch.cat([before, x], dim=2), self.conv.weight, self.conv.bias)
        else:
            frames = doubled_conv2d(to_frames(x), self.conv.weight, self.conv.bias)
            y = from_frames(frames, len(x)).repeat_interleave(2, dim=2)
        return y[:, :, 1:] if past is None else y  # the video's first frame is not doubled


def doubled_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution, zero-padded, of pictures doubled by repetition. (n, c, h, w) -> (n, c', 2h, 2w)

    Equal up to rounding to `conv2d(interpolate(x, scale_factor=2), padding=1)` with 4/9 of its multiplications.
    """
    _, _, h, w = x.shape
    x = F.pad(x, (1, 1, 1, 1))
    phases = PHASES.to(weight)
    outputs = []
    for row in (0, 1):
        for column in (0, 1):
            kernel = F.linear(weight.flatten(2), torch.kron(phases[row], phases[column])).unflatten(2, (2, 2))
            outputs.append(F.conv2d(x[:, :, row : row + h + 1, column : column + w + 1], kernel, bias))
    return rearrange(outputs, "(y x) n c h w -> n (h y) (w x) c", y=2).permute(0, 3, 1, 2)


def doubled_conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3x3 convolution of a video doubled in time and space. (b, c, 1 + t, h, w) -> (b, c', 2t, 2h, 2w)

    Causal in time: the first frame of x, which is the one before those that are doubled, is only looked back at. Zero-
    padded in space. Equal up to rounding to the convolution of the repeated values, with 8/27 of its multiplications.
    """
    _, _, _, h, w = x.shape
    x = F.pad(x, (1, 1, 1, 1))
    phases = PHASES.to(weight)
    late = phases.flip(0).flatten(0, 1)  # a causal kernel lies one position further back than a centred one
    outputs = []
    for row in (0, 1):
        for column in (0, 1):  # both phases of time look at the same frames of x: one convolution
            sums = torch.kron(late, torch.kron(phases[row], phases[column]))  # (16, 27)
            kernel = rearrange(F.linear(weight.flatten(2), sums), "o i (p z y x) -> (p o) i z y x", p=2, z=2, y=2)
            window = x[:, :, :, row : row + h + 1, column : column + w + 1]
            outputs.append(F.conv3d(window, kernel, bias.repeat(2)))
    y = rearrange(outputs, "(y x) b (p c) t h w -> b (t p) (h y) (w x) c", y=2, p=2)
    return y.permute(0, 4, 1, 2, 3)


def _interpolate(x: Tensor) -> Tensor:
    """Trilinear doubling of time and size; the first frame's size only."""
    first = F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")
    if x.shape[2] == 1:
        return first
    return torch.cat([first, F.interpolate(x[:, :, 1:], scale_factor=(2, 2, 2), mode="trilinear")], dim=2)
