"""Encoding and decoding in tiles, for videos too large to go through the network at once.

In time, groups of frames that share one frame (paper, section on temporal tiling); in space, overlapping tiles of one
size whose overlaps are blended linearly. Both are approximations: a tile does not see what lies outside it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from diffusers.models.autoencoders.vae import AutoencoderMixin
from torch import Tensor

from odvae.frame_counts import check_group, latent_frames
from odvae.layers import Stream
from odvae.running.errors import InputError

Network = Callable[[Tensor, Stream | None], Tensor]
Spans = list[tuple[int, int]]  # (start, end) of tiles along one direction
TileStreams = dict[tuple[int, int], Stream]  # by a tile's first row and column


class TilingMixin(AutoencoderMixin):
    """`enable_tiling` and `disable_tiling`, and what `encode` and `decode` then do. Sizes are in pixels and frames."""

    temporal_compression_ratio: int
    spatial_compression_ratio: int
    use_tiling: bool = False
    tile_sample_min_height: int | None = None
    tile_sample_min_width: int | None = None
    tile_sample_min_num_frames: int | None = None
    tile_sample_stride_height: int | None = None
    tile_sample_stride_width: int | None = None

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = 256,
        tile_sample_min_width: int | None = 256,
        tile_sample_min_num_frames: int | None = 33,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
    ) -> None:
        """Encode and decode in tiles from now on, until `disable_tiling`. A video of one tile is computed as without.

        In time: groups of `tile_sample_min_num_frames` = 4m+1 frames, encoded alone; the last frame of a group is the
        first of the next, whose first latent (when decoding: first frame) is dropped (paper, temporal tiling; its
        groups have 33). This is approximate in every mode. With norm=frame and temporal_upsample=nearest it is not
        needed: `encode_stream` and `decode_stream` take as little memory and equal the whole exactly. Give None there,
        which leaves time whole.

        In space: tiles of `tile_sample_min_height` x `tile_sample_min_width` pixels (multiples of 8; None leaves that
        direction whole), each `tile_sample_stride_*` after the one before (None: three quarters of a tile) and the
        last moved back inside, so that all are full tiles; overlaps are blended linearly. Norms and attention see one
        tile alone, so tiles smaller than the training clips cost quality. Streams are tiled in space too. Decoding
        uses the same tiles, in latents.

        Raises InputError for sizes that do not fit these rules.
        """
        frames = tile_sample_min_num_frames
        if frames is not None:
            check_group(frames, self.temporal_compression_ratio, "tile_sample_min_num_frames")
        step = self.spatial_compression_ratio
        stride_height = _checked_stride("height", tile_sample_min_height, tile_sample_stride_height, step)
        stride_width = _checked_stride("width", tile_sample_min_width, tile_sample_stride_width, step)
        self.use_tiling = True
        self.tile_sample_min_num_frames = frames
        self.tile_sample_min_height, self.tile_sample_stride_height = tile_sample_min_height, stride_height
        self.tile_sample_min_width, self.tile_sample_stride_width = tile_sample_min_width, stride_width

    def _encode_tiled(self, network: Network, video: Tensor) -> Tensor:
        """`network` (pixels -> latents) over groups of frames, each in spatial tiles."""
        group = self.tile_sample_min_num_frames
        return in_groups(lambda part: self._encode_in_space(network, part), video, group)

    def _decode_tiled(self, network: Network, latents: Tensor) -> Tensor:
        """`network` (latents -> pixels) in the same groups and tiles."""
        frames = self.tile_sample_min_num_frames
        group = None if frames is None else latent_frames(frames, self.temporal_compression_ratio)
        return in_groups(lambda part: self._decode_in_space(network, part), latents, group)

    def _encode_in_space(self, network: Network, video: Tensor, streams: TileStreams | None = None) -> Tensor:
        return in_tiles(network, video, *self._tiles(*video.shape[3:]), 1, self.spatial_compression_ratio, streams)

    def _decode_in_space(self, network: Network, latents: Tensor, streams: TileStreams | None = None) -> Tensor:
        step = self.spatial_compression_ratio
        height, width = (step * size for size in latents.shape[3:])
        return in_tiles(network, latents, *self._tiles(height, width), step, 1, streams)

    def _tiles(self, height: int, width: int) -> tuple[Spans, Spans]:
        """The rows and the columns of tiles of pictures of this size, in pixels."""
        rows, columns = [(0, height)], [(0, width)]
        tile, stride = self.tile_sample_min_height, self.tile_sample_stride_height
        if self.use_tiling and tile is not None:
            assert stride is not None  # enable_tiling sets both
            rows = place_tiles(height, tile, stride)
        tile, stride = self.tile_sample_min_width, self.tile_sample_stride_width
        if self.use_tiling and tile is not None:
            assert stride is not None
            columns = place_tiles(width, tile, stride)
        return rows, columns


def in_groups(network: Callable[[Tensor], Tensor], x: Tensor, group: int | None) -> Tensor:
    """`network` over groups of `group` frames, each beginning with the last frame of the one before.

    Of every group's result but the first's, the first frame is dropped, and the rest is joined. None: one group.
    """
    if group is None or x.shape[2] <= group:
        return network(x)
    starts = range(0, x.shape[2] - 1, group - 1)
    parts = (network(x[:, :, start : start + group]) for start in starts)
    return torch.cat([part if i == 0 else part[:, :, 1:] for i, part in enumerate(parts)], dim=2)


def place_tiles(length: int, size: int, stride: int) -> Spans:
    """(start, end) of tiles over 0..length: all of `size` (one of `length` where that is less), at most `stride` apart.

    The last is moved back to end at `length`, so there is no narrow one.
    """
    if length <= size:
        return [(0, length)]
    starts = [*range(0, length - size, stride), length - size]
    return [(start, start + size) for start in starts]


def in_tiles(
    network: Network,
    x: Tensor,
    rows: Spans,
    columns: Spans,
    input_step: int,
    output_step: int,
    streams: TileStreams | None = None,
) -> Tensor:
    """`network` over each tile of (b, c, t, h, w), the results blended.

    `rows` and `columns` are in pixels; one position of x is `input_step` pixels wide, one of the result `output_step`.
    `streams` keeps the state of each tile's video, where x is a piece of a longer one.
    """
    if len(rows) == len(columns) == 1:
        return network(x, None if streams is None else streams.setdefault((0, 0), {}))
    blended: Tensor | None = None
    outputs = [[(start // output_step, end // output_step) for start, end in spans] for spans in (rows, columns)]
    row_weights, column_weights = map(blend_weights, outputs)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            stream = None if streams is None else streams.setdefault((top, left), {})
            part = x[:, :, :, top // input_step : bottom // input_step, left // input_step : right // input_step]
            tile = network(part, stream)
            if blended is None:  # summed in float32 at least: bfloat16 weights do not sum to 1
                height, width = outputs[0][-1][1], outputs[1][-1][1]
                dtype = torch.promote_types(tile.dtype, torch.float32)
                blended = tile.new_zeros(*tile.shape[:3], height, width, dtype=dtype)
            weight = (row_weights[i][:, None] * column_weights[j]).to(blended)  # (h, w)
            blended[:, :, :, slice(*outputs[0][i]), slice(*outputs[1][j])] += tile * weight
    assert blended is not None  # there is a tile
    return blended.to(tile.dtype)


def blend_weights(tiles: Spans) -> Tensor:
    """The weight of each position of each tile, (tiles, size) in float64: linear ramps in the overlaps with neighbors.

    Each is positive, and those of one position sum to 1.
    """
    length, size = tiles[-1][1], tiles[0][1] - tiles[0][0]
    overlaps = [end - start for (_, end), (start, _) in pairwise(tiles)]
    position = torch.arange(size, dtype=torch.float64)
    ramps = []
    for before, after in zip([0, *overlaps], [*overlaps, 0], strict=True):
        rising, falling = (position + 1) / (before + 1), (size - position) / (after + 1)
        ramps.append(torch.minimum(rising, falling).clamp(max=1))
    total = torch.zeros(length, dtype=torch.float64)
    for (start, end), ramp in zip(tiles, ramps, strict=True):
        total[start:end] += ramp
    return torch.stack([ramp / total[start:end] for (start, end), ramp in zip(tiles, ramps, strict=True)])


def _checked_stride(side: str, size: int | None, stride: int | None, step: int) -> int | None:
    """The distance of two tiles of `size` pixels: as given, or three quarters of a tile; both multiples of `step`."""
    if size is None:
        if stride is not None:
            raise InputError(f"tile_sample_stride_{side}={stride} needs tile_sample_min_{side}, which is None")
        return None
    if size < step or size % step:
        raise InputError(f"tile_sample_min_{side}={size}: needs a multiple of {step} pixels")
    if stride is None:
        return max(step, size * 3 // 4 // step * step)
    if not 0 < stride <= size or stride % step:
        raise InputError(
            f"tile_sample_stride_{side}={stride}: needs a multiple of {step} pixels, at most the tile's {size}"
        )
    return stride
