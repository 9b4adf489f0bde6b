"""Temporal and spatial tiling of encoding and decoding, for videos too large for the network.

Temporal tiles are groups of frames; successive groups share one frame (paper, section on temporal tiling). Spatial
tiles overlap and are blended linearly. Both are approximations, since a tile lacks the context outside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from diffusers.models.autoencoders.vae import AutoencoderMixin
from torch import Tensor

from odvae.architecture.frame_counts import check_tile_frames, latent_frames
from odvae.architecture.streaming import StreamCache
from odvae.running.errors import InputError

Network = Callable[[Tensor, StreamCache | None], Tensor]
Spans = list[tuple[int, int]]  # (start, end) of tiles along one direction
TileCaches = dict[tuple[int, int], StreamCache]  # by a tile's first row and column


class TilingMixin(AutoencoderMixin):
    """Tiled encoding and decoding, with `enable_tiling` and `disable_tiling`. Sizes are in pixels and frames.

    And slicing, diffusers' `enable_slicing` and `disable_slicing`: the videos of a batch one after the other.
    """

    temporal_compression_ratio: int
    spatial_compression_ratio: int
    use_slicing: bool = False
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
        """Encode and decode in tiles until `disable_tiling`. A video that fits into one tile is not affected.

        Temporal tiles: groups of `tile_sample_min_num_frames` = r*m + 1 frames (r: the temporal compression ratio),
        encoded independently. The last frame of a group is the first of the next group, whose first latent frame (when
        decoding: first frame) is dropped (paper, temporal tiling, with groups of 33). None: no temporal tiling. Tiling
        is always approximate. With norm=frame and temporal_upsample=nearest, use `encode_stream` and `decode_stream`
        instead: they need as little memory, and their result equals that of the whole clip exactly.

        Spatial tiles: `tile_sample_min_height` x `tile_sample_min_width` pixels (multiples of the spatial compression
        ratio; None: no tiling in that direction), at intervals of `tile_sample_stride_*` pixels (None: three quarters
        of a tile). The last tile is shifted inside the frame, so that all tiles have the full size. Overlaps are
        blended linearly. Norms and attention are computed within a tile, so tiles smaller than the training clips
        reduce quality. Streaming uses spatial tiles too. Decoding uses the same tiles, in latent positions.

        Raises InputError for sizes that do not fit these rules.
        """
        frames = tile_sample_min_num_frames
        if frames is not None:
            check_tile_frames(frames, self.temporal_compression_ratio, "tile_sample_min_num_frames")
        step = self.spatial_compression_ratio
        stride_height = _checked_stride("height", tile_sample_min_height, tile_sample_stride_height, step)
        stride_width = _checked_stride("width", tile_sample_min_width, tile_sample_stride_width, step)
        self.use_tiling = True
        self.tile_sample_min_num_frames = frames
        self.tile_sample_min_height, self.tile_sample_stride_height = tile_sample_min_height, stride_height
        self.tile_sample_min_width, self.tile_sample_stride_width = tile_sample_min_width, stride_width

    def _run_sliced(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function` of a batch or, with slicing, of each of its videos."""
        return torch.cat([function(part) for part in x.split(1)]) if self.use_slicing else function(x)

    def _encode_tiled(self, network: Network, video: Tensor) -> Tensor:
        """Apply `network` (pixels -> latents) to groups of frames, each in spatial tiles."""
        group = self.tile_sample_min_num_frames
        return run_in_groups(lambda part: self._encode_in_space(network, part), video, group)

    def _decode_tiled(self, network: Network, latents: Tensor) -> Tensor:
        """Apply `network` (latents -> pixels) to the same groups and tiles."""
        frames = self.tile_sample_min_num_frames
        group = None if frames is None else latent_frames(frames, self.temporal_compression_ratio)
        return run_in_groups(lambda part: self._decode_in_space(network, part), latents, group)

    def _encode_in_space(self, network: Network, video: Tensor, caches: TileCaches | None = None) -> Tensor:
        return run_in_tiles(network, video, *self._tiles(*video.shape[3:]), 1, self.spatial_compression_ratio, caches)

    def _decode_in_space(self, network: Network, latents: Tensor, caches: TileCaches | None = None) -> Tensor:
        step = self.spatial_compression_ratio
        height, width = (step * size for size in latents.shape[3:])
        return run_in_tiles(network, latents, *self._tiles(height, width), step, 1, caches)

    def _tiles(self, height: int, width: int) -> tuple[Spans, Spans]:
        """The (start, end) of the tiles' rows and columns for frames of this size, in pixels."""
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


def run_in_groups(network: Callable[[Tensor], Tensor], x: Tensor, group: int | None) -> Tensor:
    """Apply `network` to groups of `group` frames, each starting with the last frame of the previous group.

    The first frame of every result but the first is dropped; the rest is concatenated. `group` None: one group.
    """
    if group is None or x.shape[2] <= group:
        return network(x)
    starts = range(0, x.shape[2] - 1, group - 1)
    parts = (network(x[:, :, start : start + group]) for start in starts)
    return torch.cat([part if i == 0 else part[:, :, 1:] for i, part in enumerate(parts)], dim=2)


def place_tiles(length: int, size: int, stride: int) -> Spans:
    """(start, end) of tiles of length `size` at intervals of `stride` that cover 0..length.

    The last tile is shifted to end at `length`. If `length` <= `size`, there is one tile of that length.
    """
    if length <= size:
        return [(0, length)]
    starts = [*range(0, length - size, stride), length - size]
    return [(start, start + size) for start in starts]


def run_in_tiles(
    network: Network,
    x: Tensor,
    rows: Spans,
    columns: Spans,
    input_step: int,
    output_step: int,
    caches: TileCaches | None = None,
) -> Tensor:
    """Apply `network` to each tile of x (b, c, t, h, w) and blend the results.

    `rows` and `columns` are in pixels; a position of x is `input_step` pixels wide, a position of the result
    `output_step`. `caches` has the stream cache of each tile if x is a chunk of a longer video.
    """
    if len(rows) == len(columns) == 1:
        return network(x, None if caches is None else caches.setdefault((0, 0), StreamCache()))
    blended: Tensor | None = None
    outputs = [[(start // output_step, end // output_step) for start, end in spans] for spans in (rows, columns)]
    row_weights, column_weights = map(blend_weights, outputs)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            cache = None if caches is None else caches.setdefault((top, left), StreamCache())
            part = x[:, :, :, top // input_step : bottom // input_step, left // input_step : right // input_step]
            tile = network(part, cache)
            if blended is None:  # at least float32: in bfloat16 the weights would not sum to 1
                height, width = outputs[0][-1][1], outputs[1][-1][1]
                dtype = torch.promote_types(tile.dtype, torch.float32)
                blended = tile.new_zeros(*tile.shape[:3], height, width, dtype=dtype)
            weight = (row_weights[i][:, None] * column_weights[j]).to(blended)  # (h, w)
            blended[:, :, :, slice(*outputs[0][i]), slice(*outputs[1][j])] += tile * weight
    assert blended is not None  # there is a tile
    return blended.to(tile.dtype)


def blend_weights(tiles: Spans) -> Tensor:
    """Blending weights of all tiles' positions, (tiles, size) in float64: linear ramps where neighbors overlap.

    All are positive, and the weights of all tiles at one position sum to 1.
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
    """The stride of tiles of `size` pixels: as given, or three quarters of a tile; both are multiples of `step`."""
    if size is None:
        if stride is not None:
            raise InputError(f"tile_sample_stride_{side}={stride} needs tile_sample_min_{side}, which is None")
        return None
    if size < step or size % step:
        raise InputError(f"tile_sample_min_{side}={size} must be a multiple of {step} pixels")
    if stride is None:
        return max(step, size * 3 // 4 // step * step)
    if not 0 < stride <= size or stride % step:
        raise InputError(
            f"tile_sample_stride_{side}={stride} must be a multiple of {step} pixels, at most the tile's {size}"
        )
    return stride
