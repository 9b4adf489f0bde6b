"""Reconstruction metrics of videos in [-1, 1]: (b, 3, t, h, w) twice -> (b,), the mean over a video's frames."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from odvae.shared.errors import InputError

# Identical frames have no finite PSNR; the value that public code reports for them.
PSNR_CEILING = 100.0


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 2 (the range of [-1, 1]), in float64; identical frames count 100 dB."""
    _check(video, reference)
    error = (video.double() - reference.double()).square().mean(dim=(1, 3, 4))  # (b, t)
    return (10 * torch.log10(4 / error)).clamp(max=PSNR_CEILING).mean(dim=1)


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of RGB: Gaussian window 11x11, sigma 1.5, K 0.01 and 0.03 (Wang et al. 2004).

    Frames must be at least 11 pixels high and wide.
    """
    _check(video, reference)
    if min(video.shape[-2:]) < 11:
        raise InputError(f"ssim needs frames of at least 11x11 pixels, found {tuple(video.shape[-2:])}")
    # SSIM compares means, so unlike PSNR it depends on where black lies: the definition's range is [0, 1].
    # Colour channels become frames of one channel: the same mean, and far faster in float64, which the variances need.
    frames = [rearrange(v.double() / 2 + 0.5, "b c t h w -> (b c t) 1 h w") for v in (video, reference)]
    _, similarity = structural_similarity_index_measure(
        *frames, data_range=1.0, reduction="none", return_full_image=True
    )
    whole_windows = similarity[..., 5:-5, 5:-5]  # torchmetrics pads by reflection; the definition does not
    return rearrange(whole_windows, "(b c t) 1 h w -> b (c t h w)", b=len(video)).mean(dim=1)


def _check(video: Tensor, reference: Tensor) -> None:
    if video.shape != reference.shape or video.ndim != 5 or video.shape[1] != 3:
        raise InputError(f"expected two videos (b, 3, t, h, w), found {tuple(video.shape)}, {tuple(reference.shape)}")
