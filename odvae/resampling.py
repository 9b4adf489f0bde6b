"""How a level changes its resolution: space and time by one convolution, or space first and time by its own layer.

"joint" is Open-Sora-Plan v1.2.0's way, and the default. "separate" is v1.1.0's: a 2D layer for space, then a layer that
mixes a fixed resampling of time with a learned one in the share a = sigmoid(mix_factor).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odvae.layers import CausalConv3d, Downsample, Stream, VideoLayer, join_past
from odvae.upsampling import Upsample


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
        mix = self.mix_factor.sigmoid()
        return mix * F.avg_pool3d(x, (3, 1, 1), stride=(2, 1, 1)) + (1 - mix) * self.conv(x)


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
