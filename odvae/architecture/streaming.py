"""Streaming of videos through causal layers in pieces: the same results in memory that does not grow with the length.

With gradients, a video goes through the layers as a whole; without, in pieces that fit into the CPU's cache.

A worked example. Frames 1 to 5 go through two layers: `add` sums each frame and the two before it, `halve` does the
same for every second frame. The first frame is padded with two copies of it.

>>> from odvae.architecture.layers import CausalConv3d
>>> add = CausalConv3d(1, 1, (3, 1, 1), bias=False).requires_grad_(False)
>>> halve = CausalConv3d(1, 1, (3, 1, 1), stride=(2, 1, 1), bias=False).requires_grad_(False)
>>> add.weight[:] = halve.weight[:] = 1
>>> video = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, 1, 5, 1, 1)
>>> add(video).flatten().tolist(), halve(add(video)).flatten().tolist()
([3.0, 4.0, 6.0, 9.0, 12.0], [9.0, 13.0, 27.0])

Now in two chunks. Each layer stores in `cache` the input frames that it needs again for its next piece: `add` the last
two, `halve`, which has stride 2, only one. The results of the chunks, concatenated, equal those of the whole video.

>>> cache = StreamCache()
>>> halve(add(video[:, :, :3], cache), cache).flatten().tolist()
[9.0, 13.0]
>>> cache.get(add).flatten().tolist(), cache.get(halve).flatten().tolist()
([2.0, 3.0], [6.0])
>>> halve(add(video[:, :, 3:], cache), cache).flatten().tolist()
[27.0]

`LayerStack` does this for all layers and regroups the frames before each one, since layers differ in how many frames
they process at once, and a layer that halves time needs an even number.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn

# Largest number of values of a piece (one frame may have more). On a CPU, pieces of this size stay in the cache, and
# the allocator reuses memory (above 32 MiB it maps new memory for each tensor, which takes longer than computing a
# norm). Accelerators need larger pieces to be fully used.
PIECE_VALUES = {"cpu": 2**21}
PIECE_VALUES_ELSEWHERE = 2**25


class StreamCache:
    """For each layer, the input frames that it needs again for the next piece of the same video; at first none.

    Not a dict: the hooks with which accelerate and diffusers move a layer's arguments to its device copy dicts, and
    what the layer stores in the copy would be lost.
    """

    def __init__(self) -> None:
        self._frames: dict[nn.Module, Tensor] = {}
        self._begun: set[nn.Module] = set()

    def begins(self, module: nn.Module) -> bool:
        """Whether this is the first piece for the module; from its second call on, it is not."""
        first = module not in self._begun
        self._begun.add(module)
        return first

    def get(self, layer: nn.Module) -> Tensor | None:
        return self._frames.get(layer)

    def __setitem__(self, layer: nn.Module, frames: Tensor) -> None:
        self._frames[layer] = frames


class VideoLayer(nn.Module):
    """Base class of layers (b, c, t, h, w) -> (b, c', t', h', w'); its attributes let `LayerStack` run it in pieces."""

    values_per_position: int
    """Largest number of values in memory per position of the input; it determines how many frames form a piece."""
    halves_time: bool = False
    """Whether it downsamples time by 2: then a piece must have an even number of frames, not counting frame 0."""
    needs_whole_clip: bool = False
    """Whether it cannot be computed in pieces."""


def with_copies_in_front(x: Tensor, count: int) -> Tensor:
    """x with `count` copies of its first frame in front, in one operation.

    Of a concatenation of copies alone torch.compile makes an expanded tensor, which has lost the channels-last layout:
    what is joined with it would be kept for the backward pass in another layout, and copied for each convolution.
    """
    return torch.cat([*[x[:, :, :1]] * count, x], dim=2)


def join_past(cache: StreamCache, layer: nn.Module, past: Tensor, x: Tensor, kept: int) -> Tensor:
    """Concatenate the frames `past` and the piece x along time; the last `kept` frames are cached for the next piece.

    The cache entry is allocated once, for the first piece and before the concatenation, and overwritten in place later:
    long-lived tensors allocated between short-lived ones would fragment the memory.
    """
    entry = cache.get(layer)
    if entry is None:
        entry = cache[layer] = past[:, :, :kept]
    joined = torch.cat([past, x], dim=2)
    entry.copy_(joined[:, :, joined.shape[2] - kept :])
    return joined


class LayerStack(nn.Module):
    """A sequence of layers. Without gradients, it runs in pieces, and memory does not grow with the video's length.

    The result equals that of the whole video: each layer keeps the frames it needs again in `cache`. Layers that need
    the whole clip (`norm="clip"`, `temporal_upsample="trilinear"`) get the whole clip.
    """

    gradient_checkpointing = False  # set by diffusers' enable_gradient_checkpointing, with _gradient_checkpointing_func

    def parts(self) -> list[VideoLayer | LayerStack]:
        """The layers and nested stacks, in order."""
        raise NotImplementedError

    def layers(self) -> list[VideoLayer | LayerStack]:
        """All layers in order. Nested stacks are flattened, except those that a library has hooked.

        A hook (offloading, FSDP) brings a stack's weights when the stack is called, so it is called, with all frames.
        """
        flattened: list[VideoLayer | LayerStack] = []
        for part in self.parts():
            flattened += part.layers() if isinstance(part, LayerStack) and not is_hooked(part) else [part]
        return flattened

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        """Apply the layers to a video, or to the next chunk of the video that `cache` belongs to (empty: the first)."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if not torch.is_grad_enabled():
            cache = StreamCache() if cache is None else cache
            return torch.cat(list(run_in_pieces(self.layers(), x, cache, cache.begins(self))), dim=2)
        for part in self.parts():
            if self.gradient_checkpointing and isinstance(part, VideoLayer):
                x = self._gradient_checkpointing_func(part, x, cache)
            else:
                x = part(x, cache)
        return x


def is_hooked(module: nn.Module) -> bool:
    """Whether something must happen when the module is called: accelerate and diffusers replace its `forward`."""
    return "forward" in vars(module) or bool(module._forward_pre_hooks)


def run_in_pieces(
    layers: Sequence[VideoLayer | LayerStack], x: Tensor, cache: StreamCache, begins: bool
) -> Iterator[Tensor]:
    """Apply the layers to x in pieces; yields the pieces of the result in order.

    Each piece goes through all layers before the next one is started. `begins`: these are the first frames of the
    video.
    """
    pieces: Iterable[Tensor] = [x]
    for layer in layers:
        pieces = map(layer, regroup(pieces, layer, begins), repeat(cache))
    return iter(pieces)


def regroup(pieces: Iterable[Tensor], layer: VideoLayer | LayerStack, begins: bool) -> Iterator[Tensor]:
    """Regroup frames into pieces of as many frames as `layer` processes at once; the last piece may be shorter.

    `begins`: these are the first frames of the video.
    """
    waiting: list[Tensor] = []
    alone = int(begins and isinstance(layer, VideoLayer) and layer.halves_time)  # the first frame is not in a pair
    for piece in pieces:
        frames = alone + frames_at_once(layer, piece)
        waiting.append(piece)
        del piece  # free its memory while later layers run
        while sum(part.shape[2] for part in waiting) >= frames:
            yield take(waiting, frames)
            frames, alone = frames - alone, 0
    if waiting:
        yield take(waiting, sys.maxsize)


def take(waiting: list[Tensor], frames: int) -> Tensor:
    """Remove the first `frames` frames from the `waiting` pieces and return them."""
    joined = torch.cat(waiting, dim=2) if len(waiting) > 1 else waiting[0]
    waiting[:] = [joined[:, :, frames:]] if joined.shape[2] > frames else []
    return joined[:, :, :frames]


def frames_at_once(layer: VideoLayer | LayerStack, x: Tensor) -> int:
    """How many frames of the size of x's (b, c, t, h, w) the layer processes at once."""
    if isinstance(layer, LayerStack) or layer.needs_whole_clip:
        return sys.maxsize // 2
    b, _, _, h, w = x.shape
    frames = PIECE_VALUES.get(x.device.type, PIECE_VALUES_ELSEWHERE) // (b * h * w * layer.values_per_position)
    return max(2, frames // 2 * 2) if layer.halves_time else max(1, frames)
