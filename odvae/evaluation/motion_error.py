"""Error on moving pixels alone.

A VAE that compresses time too much blurs or doubles what moves (ghosting), which a mean over all pixels hides where
most of the picture stands still.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odvae.flicker import LEVELS, frame_changes
from odvae.metrics import PSNR_CEILING
from odvae.running.errors import InputError


@dataclass(frozen=True)
class MotionError:
    """Of each clip, (b,): PSNR in dB (peak 2) and mean absolute error in 8-bit levels of its moving pixels, which are a
    share `moving` of all pixels after the first frame. PSNR and error are NaN where nothing moves."""

    psnr: Tensor
    mae: Tensor
    moving: Tensor


def motion_error(reconstruction: Tensor, video: Tensor, threshold: float) -> MotionError:
    """The error of a reconstruction of a video, both (b, 3, t >= 2, h, w) in [-1, 1], on moving pixels.

    A pixel moves if a color of it differs by more than `threshold` 8-bit levels from the frame before, in the video.
    One error is computed from all moving pixels of a clip, in float64; equal pixels count 100 dB.
    """
    if reconstruction.shape != video.shape:
        raise InputError(f"expected two videos of one shape, found {tuple(reconstruction.shape)}, {tuple(video.shape)}")
    moving = frame_changes(video).abs().amax(dim=1) > threshold  # (b, t - 1, h, w)
    error = (reconstruction - video)[:, :, 1:].double()
    count = moving.sum(dim=(1, 2, 3))
    square, absolute = (
        (value.mean(dim=1) * moving).sum(dim=(1, 2, 3)) / count for value in (error.square(), error.abs())
    )
    psnr = (10 * (4 / square).log10()).clamp(max=PSNR_CEILING)
    return MotionError(psnr, absolute * LEVELS, moving.double().mean(dim=(1, 2, 3)))
