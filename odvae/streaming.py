"""How a video goes through the layers: whole where gradients are kept, otherwise in pieces that stay in the cache.

A worked example. Frames 1 to 5 go through two layers: `add` sums each frame and the two before it, `halve` does the
same and takes every second frame. Before the first frame stand two copies of it.

>>> from odvae.layers import CausalConv3d
>>> add = CausalConv3d(1, 1, (3, 1, 1), bias=False).requires_grad_(False)
>>> halve = CausalConv3d(1, 1, (3, 1, 1), stride=(2, 1, 1), bias=False).requires_grad_(False)
>>> add.weight[:] = halve.weight[:] = 1
>>> video = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, 1, 5, 1, 1)
>>> add(video).flatten().tolist(), halve(add(video)).flatten().tolist()
([3.0, 4.0, 6.0, 9.0, 12.0], [9.0, 13.0, 27.0])

Now in two chunks. Each layer keeps in `stream` what its next piece looks back at: `add` its last two input frames,
`halve`, which moves on by two, only one. The chunks' results joined are those of the whole.

>>> stream: Stream = {}
>>> halve(add(video[:, :, :3], stream), stream).flatten().tolist()
[9.0, 13.0]
>>> stream[add].flatten().tolist(), stream[halve].flatten().tolist()
([2.0, 3.0], [6.0])
>>> halve(add(video[:, :, 3:], stream), stream).flatten().tolist()
[27.0]

`LayerStack` does this for all layers, and cuts the pieces again before each: a layer that halves time wants pairs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn

from odvae.layers import Stream, VideoLayer

# The most values in a tensor between two layers, where a single frame has not more. On a CPU a layer then finds its
# input in the cache and the allocator gives out warm memory (above 32 MiB each tensor is mapped anew, which takes
# longer than the norm that fills it). An accelerator needs more at once to be busy.
PIECE_VALUES = {"cpu": 2**21}
PIECE_VALUES_ELSEWHERE = 2**26


class LayerStack(nn.Module):
    """Layers one after the other. Where gradients are off, memory does not grow with the video's length.

    Pieces are exact: what a layer's next piece needs of the one before is in `stream`. Layers that need the whole clip
    (`norm="clip"`, `temporal_upsample="trilinear"`) get it.
    """

    gradient_checkpointing = False  # set by diffusers' enable_gradient_checkpointing, with _gradient_checkpointing_func

    def parts(self) -> list[VideoLayer | LayerStack]:
        """What the video goes through, in order."""
        raise NotImplementedError

    def layers(self) -> list[VideoLayer]:
        """The parts, and in place of a stack among them its layers."""
        return [layer for part in self.parts() for layer in (part.layers() if isinstance(part, LayerStack) else [part])]

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """The layers over a video, or over the next piece of the one whose `stream` is given (empty: it begins)."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if not torch.is_grad_enabled():
            return torch.cat(list(in_pieces(self.layers(), x, {} if stream is None else stream)), dim=2)
        for part in self.parts():
            if self.gradient_checkpointing and isinstance(part, VideoLayer):
                x = self._gradient_checkpointing_func(part, x, stream)
            else:
                x = part(x, stream)
        return x


def in_pieces(layers: Sequence[VideoLayer], x: Tensor, stream: Stream) -> Iterator[Tensor]:
    """The result of the layers in pieces, in order; each is computed through all layers before the next is begun."""
    begins = not stream
    pieces: Iterable[Tensor] = [x]
    for layer in layers:
        pieces = map(layer, recut(pieces, layer, begins), repeat(stream))
    return iter(pieces)


def recut(pieces: Iterable[Tensor], layer: VideoLayer, begins: bool) -> Iterator[Tensor]:
    """The same frames in pieces of the number that `layer` takes at once; the last may have fewer."""
    waiting: list[Tensor] = []
    alone = int(begins and layer.halves_time)  # the first frame has no partner
    for piece in pieces:
        frames = alone + frames_at_once(layer, piece)
        waiting.append(piece)
        del piece  # nothing is held while the layers after this one work
        while sum(part.shape[2] for part in waiting) >= frames:
            yield take(waiting, frames)
            frames, alone = frames - alone, 0
    if waiting:
        yield take(waiting, sys.maxsize)


def take(waiting: list[Tensor], frames: int) -> Tensor:
    """Take the first `frames` frames off the pieces in waiting."""
    joined = torch.cat(waiting, dim=2) if len(waiting) > 1 else waiting[0]
    waiting[:] = [joined[:, :, frames:]] if joined.shape[2] > frames else []
    return joined[:, :, :frames]


def frames_at_once(layer: VideoLayer, x: Tensor) -> int:
    """How many frames like those of x (b, c, t, h, w) the layer takes at once."""
    if layer.needs_whole_clip:
        return sys.maxsize // 2
    b, _, _, h, w = x.shape
    frames = PIECE_VALUES.get(x.device.type, PIECE_VALUES_ELSEWHERE) // (b * h * w * layer.width)
    return max(2, frames // 2 * 2) if layer.halves_time else max(1, frames)
