"""Layers of OD-VAE: causal 3D convolution, frame-wise 2D convolution, group norm, residual block, attention.

Videos are (b, c, t, h, w) throughout; layers that work frame by frame fold t into the batch.

Every layer takes an optional `cache`, in which it keeps the few input frames that it needs again for the next
piece of the same video. A video passed in pieces with one cache gives the same result as the whole video without one.
Tensor names are those of diffusers' AutoencoderKL, so the weights of an image VAE can be loaded by name.

Memory layout: activations and convolution weights are channels-last in all layers. The frames of a channels-last video
are channels-last images, so 2D layers, norms and 3D layers can follow each other without copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from odvae.architecture.streaming import StreamCache, VideoLayer, join_past, with_copies_in_front

if TYPE_CHECKING:  # what ChannelsLastMixin is mixed into
    from diffusers import ModelMixin as _Mixed
else:
    _Mixed = object


def to_frames(x: Tensor) -> Tensor:
    """(b, c, t, h, w) -> (b t, c, h, w), channels-last; no copy where x is channels-last.

    Here and in `from_frames` a single frame is only squeezed or unsqueezed: flattening would give it strides that torch
    mistakes for another memory layout and converts.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return x.squeeze(2) if x.shape[2] == 1 else rearrange(x, "b c t h w -> (b t) c h w")


def from_frames(frames: Tensor, batch: int) -> Tensor:
    """(b t, c, h, w) -> (b, c, t, h, w)"""
    return frames.unsqueeze(2) if frames.shape[0] == batch else rearrange(frames, "(b t) c h w -> b c t h w", b=batch)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...] = (1, 1, 1),
    padding: tuple[int, ...] = (0, 0, 0),
) -> Tensor:
    """`F.conv3d`, on a CPU without gradients always by oneDNN's kernel. (b, c, t, h, w) -> (b, c', t', h', w')

    For a single video with b*c*t*h <= 20480, torch chooses its native kernel, which is up to ten times slower and
    returns another memory layout (`use_mkldnn` in torch's Convolution.cpp). The pieces of a streamed video have this
    size. Where torch chooses oneDNN too, the result is bitwise the same.
    """
    if (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_grad_enabled()  # torch.mkldnn_convolution has no backward
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    ):
        return F.conv3d(x, weight, bias, stride, padding)
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)  # dilation, groups


class Conv3d(nn.Conv3d):
    """A 3D convolution computed by `conv3d`, without padding in time. (b, c, t, h, w) -> (b, c', t', h', w')"""

    def forward(self, x: Tensor) -> Tensor:
        return conv3d(x, self.weight, self.bias, self.stride, self.padding)


class FrameConv2d(VideoLayer, nn.Conv2d):
    """A 2D convolution applied to every frame. (b, c, t, h, w) -> (b, c', t, h', w')"""

    @property
    def values_per_position(self) -> int:  # type: ignore[override]  # a property
        return max(self.in_channels, self.out_channels)

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        return from_frames(super().forward(to_frames(x)), len(x))


class CausalConv3d(VideoLayer, Conv3d):
    """Causal 3D convolution: (b, c, t, h, w) -> (b, c', (t - 1) // stride + 1, h', w'); no frame depends on later ones.

    Time is padded in front only, with copies of the first frame; space with zeros. So an image is a video with t = 1,
    and 1 + k*stride frames become 1 + k. With a cache, all pieces after the first have a multiple of stride frames.
    """

    @property
    def values_per_position(self) -> int:  # type: ignore[override]  # a property
        return max(self.in_channels, self.out_channels)

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1:
            return super().forward(x)
        if cache is None:
            return super().forward(with_copies_in_front(x, kernel - 1))
        past = cache.get(self)
        if past is None:  # the video begins here; `cat`, since after `expand` the memory layout would be lost
            past = torch.cat([x[:, :, :1]] * (kernel - 1), dim=2)
        return super().forward(join_past(cache, self, past, x, kernel - stride))


def make_conv(temporal: bool, channels: int, out_channels: int, kernel: int = 3) -> nn.Module:
    """A size-preserving convolution: causal 3D if `temporal`, otherwise frame by frame."""
    pad = kernel // 2
    if temporal:
        return CausalConv3d(channels, out_channels, kernel, padding=(0, pad, pad))
    return FrameConv2d(channels, out_channels, kernel, padding=pad)


class VideoGroupNorm(VideoLayer, nn.GroupNorm):
    """Group norm with statistics of each frame or, if `over_time`, of the whole clip, as in the released models.

    With statistics of the whole clip, all frames depend on each other: the model is not causal and cannot be streamed.
    """

    def __init__(self, groups: int, channels: int, over_time: bool) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.values_per_position, self.needs_whole_clip = channels, over_time

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        return self._normalize(x, lambda y: y)

    def _normalize(self, x: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
        """`then` of the norm, with the dtype of x, channels-last.

        Under autocast a GPU computes the norm in fp32, and what follows until here; the convolution after it would
        round to 16 bits anyway, but padded frames and the frames that a stream keeps take half the memory.
        """
        frames = x if self.needs_whole_clip else to_frames(x)
        layout = torch.channels_last_3d if self.needs_whole_clip else torch.channels_last
        y = then(super().forward(_as_group_norm_reads(frames))).to(x.dtype, memory_format=layout)
        y = y if self.needs_whole_clip else from_frames(y, len(x))
        return y.contiguous(memory_format=torch.channels_last_3d)


def _as_group_norm_reads(x: Tensor) -> Tensor:
    """x in the dtype and layout that CUDA's kernel of group norm takes, converted in one copy instead of two."""
    if x.device.type != "cuda":
        return x
    dtype = torch.float32 if torch.is_autocast_enabled("cuda") else x.dtype
    return x.to(dtype, memory_format=torch.contiguous_format)


class NormSiLU(VideoGroupNorm):
    """Group norm, then SiLU."""

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        return self._normalize(x, lambda y: F.silu(y, inplace=not torch.is_grad_enabled()))


class ResnetBlock(VideoLayer):
    """Residual block: norm, SiLU, conv, norm, SiLU, conv, plus the input. `temporal`: which convs are causal 3D."""

    def __init__(
        self, channels: int, out_channels: int, groups: int, temporal: tuple[bool, bool], over_time: bool
    ) -> None:
        super().__init__()
        self.values_per_position, self.needs_whole_clip = max(channels, out_channels), over_time
        self.norm1 = NormSiLU(groups, channels, over_time)
        self.conv1 = make_conv(temporal[0], channels, out_channels)
        self.norm2 = NormSiLU(groups, out_channels, over_time)
        self.conv2 = make_conv(temporal[1], out_channels, out_channels)
        if channels != out_channels:
            self.conv_shortcut = make_conv(temporal[0], channels, out_channels, kernel=1)
        else:
            self.conv_shortcut = None

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        y = self.conv1(self.norm1(x), cache)
        y = self.conv2(self.norm2(y), cache)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x, cache)
        # Not in place with gradients: selective checkpointing keeps the convolution's output.
        return y + shortcut if torch.is_grad_enabled() else y.add_(shortcut)


class FrameAttention(VideoLayer):
    """Single-head self-attention within each frame, plus the input. (b, c, t, h, w)"""

    def __init__(self, channels: int, groups: int, over_time: bool) -> None:
        super().__init__()
        self.values_per_position, self.needs_whole_clip = channels, over_time
        self.group_norm = VideoGroupNorm(groups, channels, over_time)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        tokens = rearrange(to_frames(self.group_norm(x)), "n c h w -> n 1 (h w) c")
        y = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        y = rearrange(self.to_out[0](y), "n 1 (h w) c -> n c h w", h=x.shape[3])
        return x + from_frames(y, len(x))


class Downsample(VideoLayer):
    """Strided convolution that halves height and width and, with `halves_time`, the number of frames after the first.

    Space is zero-padded by one at the right and the bottom. With `halves_space=False` only time is halved.
    """

    def __init__(self, channels: int, temporal: bool, halves_time: bool, halves_space: bool = True) -> None:
        super().__init__()
        self.values_per_position, self.halves_time, self.halves_space = channels, halves_time, halves_space
        if not halves_space:
            self.conv: VideoLayer = CausalConv3d(channels, channels, 3, stride=(2, 1, 1), padding=(0, 1, 1))
        elif temporal or halves_time:
            self.conv = CausalConv3d(channels, channels, 3, stride=(2 if halves_time else 1, 2, 2))
        else:
            self.conv = FrameConv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.halves_space else x, cache)


def keep_channels_last(model: nn.Module) -> None:
    """Convert convolution weights to channels-last layout, in place: faster on CPUs and tensor cores.

    Values and names do not change. Convolutions with few channels (from or to pixels) keep their layout, since their
    kernels return contiguous gradients.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.weight.data = laid_out_weight(module).data


def laid_out_weight(conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """The weight in the layout that `keep_channels_last` gives it; a copy only where it has lost that on a disk."""
    if min(conv.in_channels, conv.out_channels) < 8:
        return conv.weight
    layout = torch.channels_last_3d if isinstance(conv, nn.Conv3d) else torch.channels_last
    return conv.weight.to(memory_format=layout)


class ChannelsLastMixin(_Mixed):
    """Makes `from_pretrained` of a diffusers model return channels-last weights, also where they are offloaded to disk.

    The layout determines which kernels run, and kernels round differently; with one layout, results are reproducible.
    """

    def enable_group_offload(
        self, onload_device: torch.device, *arguments, offload_to_disk_path: str | None = None, **options
    ) -> None:
        """Same as diffusers' ModelMixin.enable_group_offload, whose files hold contiguous tensors only."""
        if offload_to_disk_path is not None:
            for parameter in self.parameters():
                parameter.data = parameter.data.contiguous()
        super().enable_group_offload(onload_device, *arguments, offload_to_disk_path=offload_to_disk_path, **options)

    @classmethod
    def from_pretrained(cls, *arguments, **options):
        """Same as diffusers' ModelMixin.from_pretrained."""
        loaded = super().from_pretrained(*arguments, **options)
        keep_channels_last(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded
