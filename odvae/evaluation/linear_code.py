"""Codes without a network, to compare a VAE with: principal components of blocks, and the first frame held.

Both take a clip as the VAE does: the first frame alone, then groups of frames. A linear code that keeps the first c
principal components of a block (c = the VAE's latent channels) has as many values as the VAE's latents, and is the best
that any linear encoder and decoder of separate blocks can do for squared error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from odvae.architecture.frame_counts import check_frame_count


@dataclass(frozen=True)
class PrincipalComponents:
    """The mean (d,) and the first components (c, d) of blocks of d values."""

    mean: Tensor
    components: Tensor

    def project(self, blocks: Tensor) -> Tensor:
        """The blocks (n, d), encoded into c values each and decoded."""
        return (blocks - self.mean) @ self.components.T @ self.components + self.mean


@dataclass(frozen=True)
class LinearCode:
    """A code of separate blocks: of the first frame, and of `rate` (time, height, width) pixels in the others."""

    rate: tuple[int, int, int]
    first: PrincipalComponents
    rest: PrincipalComponents | None

    def reconstruct(self, video: Tensor) -> Tensor:
        """Video (b, 3, 1+kt, h, w) in [-1, 1] -> what is left of it after encoding and decoding, clamped."""
        parts = [video[:, :, :1], video[:, :, 1:]]
        codes = [(self.first, (1, *self.rate[1:])), (self.rest, self.rate)]
        decoded = [
            _from_blocks(code.project(_to_blocks(part, rate)), part, rate)
            for part, (code, rate) in zip(parts, codes, strict=True)
            if code is not None and part.shape[2]
        ]
        return torch.cat(decoded, dim=2).clamp(-1, 1)


def fit_linear_code(videos: Iterable[Tensor], rate: tuple[int, int, int], channels: int) -> LinearCode:
    """The linear code of `channels` values a block that reconstructs these videos best, each (b, 3, 1+kt, h, w).

    Sums are in float64. Raises InputError for a number of frames that does not fit the rate.
    """
    first, rest = _Sums(), _Sums()
    for video in videos:
        check_frame_count(video.shape[2], rate[0], "data.frames")
        first.add(_to_blocks(video[:, :, :1], (1, *rate[1:])))
        if video.shape[2] > 1:
            rest.add(_to_blocks(video[:, :, 1:], rate))
    return LinearCode(rate, first.components(channels), rest.components(channels) if rest.count else None)


def hold_first_frame(video: Tensor) -> Tensor:
    """The first frame of a video (b, 3, t, h, w) in place of all of its frames: what a code without motion can do."""
    return video[:, :, :1].expand_as(video)


class _Sums:
    """Count, sum and sum of products of blocks, of which the components follow."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.products: Tensor | float = 0.0

    def add(self, blocks: Tensor) -> None:
        blocks = blocks.double()
        self.count += len(blocks)
        self.total = self.total + blocks.sum(0)
        self.products = self.products + blocks.T @ blocks

    def components(self, channels: int) -> PrincipalComponents:
        assert isinstance(self.total, Tensor)
        assert isinstance(self.products, Tensor)
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        _, vectors = torch.linalg.eigh(covariance)  # ascending
        return PrincipalComponents(mean.float(), vectors.T.flip(0)[:channels].float())


def _to_blocks(video: Tensor, rate: tuple[int, int, int]) -> Tensor:
    t, h, w = rate
    return rearrange(video, "b c (k t) (i h) (j w) -> (b k i j) (c t h w)", t=t, h=h, w=w)


def _from_blocks(blocks: Tensor, like: Tensor, rate: tuple[int, int, int]) -> Tensor:
    (b, c, frames, height, _), (t, h, w) = like.shape, rate
    return rearrange(
        blocks, "(b k i j) (c t h w) -> b c (k t) (i h) (j w)", b=b, k=frames // t, i=height // h, c=c, t=t, h=h, w=w
    )  # fmt: skip
