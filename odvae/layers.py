"""The layers of OD-VAE. Videos are (b, c, t, h, w) throughout; `frame by frame` layers fold t into the batch.

Every layer takes an optional `stream`: a dict in which it keeps the few frames that the next piece of the same video
still needs. A video given in pieces with one dict gives the same frames as the whole video without.
Tensor names are those of diffusers' AutoencoderKL, so an image VAE's weights find their place by name.

Memory layout: activations are channels-last in all layers, and so are the convolutions' weights. The frames of a
channels-last video are channels-last pictures, so 2D layers, norms and 3D layers follow each other without copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:  # what ChannelsLastMixin is mixed into
    from diffusers import ModelMixin as _Mixed
else:
    _Mixed = object

Stream = dict[nn.Module, Tensor]


class VideoLayer(nn.Module):
    """(b, c, t, h, w) -> (b, c', t', h', w'), and what `LayerStack` must know to give it a video in pieces."""

    width: int
    """The most values that it holds for one position of its input: sets how many frames it takes at once."""
    halves_time: bool = False
    """It joins frames after the first two by two, so a piece must hold pairs."""
    needs_whole_clip: bool = False
    """Its function cannot be had in pieces."""


def to_frames(x: Tensor) -> Tensor:
    """(b, c, t, h, w) -> (b t, c, h, w), channels-last; no copy where x is channels-last.

    Here and in `from_frames` a single frame is only (un)squeezed: flattening would leave it with strides that torch
    takes for another layout, and convert.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return x.squeeze(2) if x.shape[2] == 1 else rearrange(x, "b c t h w -> (b t) c h w")


def from_frames(frames: Tensor, batch: int) -> Tensor:
    """(b t, c, h, w) -> (b, c, t, h, w)"""
    return frames.unsqueeze(2) if len(frames) == batch else rearrange(frames, "(b t) c h w -> b c t h w", b=batch)


def join_past(stream: Stream | None, layer: nn.Module, past: Tensor, x: Tensor, kept: int) -> Tensor:
    """The frames before a piece and the piece, in one; its last `kept` frames are remembered for the next piece.

    What is remembered stays where it is in memory from the first piece on, and is put there before the join: with
    lasting tensors among passing ones, freed memory would lie in holes too small to be used again.
    """
    if stream is None:
        return torch.cat([past, x], dim=2)
    stream.setdefault(layer, past[:, :, :kept])
    joined = torch.cat([past, x], dim=2)
    stream[layer].copy_(joined[:, :, joined.shape[2] - kept :])
    return joined


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...] = (1, 1, 1),
    padding: tuple[int, ...] = (0, 0, 0),
) -> Tensor:
    """`F.conv3d`, which on a CPU without gradients is always oneDNN's kernel. (b, c, t, h, w) -> (b, c', t', h', w')

    torch gives a single video of b*c*t*h <= 20480 to a kernel of its own, which is up to ten times slower and returns
    another memory layout (`use_mkldnn` in its Convolution.cpp). The pieces of a stream are of this size. Where torch
    would choose oneDNN too, the result is the same to the last bit.
    """
    if (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_grad_enabled()  # oneDNN's function alone has no backward
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    ):
        return F.conv3d(x, weight, bias, stride, padding)
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)  # dilation, groups


class FrameConv2d(VideoLayer, nn.Conv2d):
    """A 2D convolution on every frame. (b, c, t, h, w) -> (b, c', t, h', w')"""

    @property
    def width(self) -> int:  # type: ignore[override]  # it follows from others, and is not set
        return max(self.in_channels, self.out_channels)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return from_frames(super().forward(to_frames(x)), len(x))


class CausalConv3d(VideoLayer, nn.Conv3d):
    """A 3D convolution that never sees a later frame. (b, c, t, h, w) -> (b, c', (t - 1) // stride + 1, h', w')

    Time is padded in front only, with copies of the first frame; space with zeros. So an image is a video with
    t = 1, and 1 + k*stride frames become 1 + k. In a stream, later pieces hold a multiple of stride frames.
    """

    @property
    def width(self) -> int:  # type: ignore[override]  # it follows from others, and is not set
        return max(self.in_channels, self.out_channels)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel > 1:
            past = stream.get(self) if stream else None
            if past is None:  # the video begins here; not `expand`ed, which would lose the layout in `cat`
                past = torch.cat([x[:, :, :1]] * (kernel - 1), dim=2)
            x = join_past(stream, self, past, x, kernel - stride)
        return conv3d(x, self.weight, self.bias, self.stride, self.padding)


def make_conv(temporal: bool, channels: int, out_channels: int, kernel: int = 3) -> nn.Module:
    """A size-keeping convolution that sees time, or one that works frame by frame."""
    pad = kernel // 2
    if temporal:
        return CausalConv3d(channels, out_channels, kernel, padding=(0, pad, pad))
    return FrameConv2d(channels, out_channels, kernel, padding=pad)


class VideoGroupNorm(VideoLayer, nn.GroupNorm):
    """Group norm with statistics of each frame, or (`over_time`) of the whole clip, as the released model has it.

    Over time it lets every frame see every other: such a model is not causal and cannot be streamed.
    """

    def __init__(self, groups: int, channels: int, over_time: bool) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.width, self.needs_whole_clip = channels, over_time

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        y = super().forward(x) if self.needs_whole_clip else from_frames(super().forward(to_frames(x)), len(x))
        return y.contiguous(memory_format=torch.channels_last_3d)  # on CUDA torch's group norm returns another layout


class NormSiLU(VideoGroupNorm):
    """Group norm, then SiLU."""

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return F.silu(super().forward(x), inplace=not torch.is_grad_enabled())


class ResnetBlock(VideoLayer):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input. `temporal` says which of the two convs see time."""

    def __init__(
        self, channels: int, out_channels: int, groups: int, temporal: tuple[bool, bool], over_time: bool
    ) -> None:
        super().__init__()
        self.width, self.needs_whole_clip = max(channels, out_channels), over_time
        self.norm1 = NormSiLU(groups, channels, over_time)
        self.conv1 = make_conv(temporal[0], channels, out_channels)
        self.norm2 = NormSiLU(groups, out_channels, over_time)
        self.conv2 = make_conv(temporal[1], out_channels, out_channels)
        if channels != out_channels:
            self.conv_shortcut = make_conv(temporal[0], channels, out_channels, kernel=1)
        else:
            self.conv_shortcut = None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        y = self.conv1(self.norm1(x), stream)
        y = self.conv2(self.norm2(y), stream)
        y += x if self.conv_shortcut is None else self.conv_shortcut(x, stream)
        return y


class FrameAttention(VideoLayer):
    """Self-attention among the pixels of each frame, one head, plus the input. (b, c, t, h, w)"""

    def __init__(self, channels: int, groups: int, over_time: bool) -> None:
        super().__init__()
        self.width, self.needs_whole_clip = channels, over_time
        self.group_norm = VideoGroupNorm(groups, channels, over_time)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        tokens = rearrange(to_frames(self.group_norm(x)), "n c h w -> n 1 (h w) c")
        y = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        y = rearrange(self.to_out[0](y), "n 1 (h w) c -> n c h w", h=x.shape[3])
        return x + from_frames(y, len(x))


class Downsample(VideoLayer):
    """Halves the size, and (`halves_time`) the frames after the first. Zeros are padded right and below by one."""

    def __init__(self, channels: int, sees_time: bool, halves_time: bool) -> None:
        super().__init__()
        self.width, self.halves_time = channels, halves_time
        if sees_time or halves_time:
            self.conv = CausalConv3d(channels, channels, 3, stride=(2 if halves_time else 1, 2, 2))
        else:
            self.conv = FrameConv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)), stream)


def keep_channels_last(model: nn.Module) -> None:
    """Lay the convolution weights out channels-last (values and names unchanged): faster on CPU and tensor cores.

    Convolutions from or to pixels keep their layout: with so few channels the kernels return contiguous gradients.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and min(module.in_channels, module.out_channels) >= 8:
            layout = torch.channels_last_3d if isinstance(module, nn.Conv3d) else torch.channels_last
            module.weight.data = module.weight.data.to(memory_format=layout)


class ChannelsLastMixin(_Mixed):
    """A diffusers model whose weights lie channels-last however it was loaded.

    The layout chooses the kernels, and those round differently: with one layout, one model gives one result.
    """

    @classmethod
    def from_pretrained(cls, *arguments, **options):
        """As diffusers' ModelMixin.from_pretrained."""
        loaded = super().from_pretrained(*arguments, **options)
        keep_channels_last(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded
