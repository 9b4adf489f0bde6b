"""Reconstruction metrics PSNR, SSIM and LPIPS of videos: two (b, 3, t, h, w) in [-1, 1] -> (b,), means over frames."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from skimage.metrics import structural_similarity
from torch import Tensor

from odvae.lpips import load_lpips
from odvae.running.errors import InputError
from odvae.settings import Backbone

# Identical frames have no finite PSNR; this is the value that most public code reports for them.
PSNR_CEILING = 100.0


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 2 (the range of [-1, 1]), in float64; identical frames count 100 dB."""
    _check(video, reference)
    error = (video.double() - reference.double()).square().mean(dim=(1, 3, 4))  # (b, t)
    return (10 * torch.log10(4 / error)).clamp(max=PSNR_CEILING).mean(dim=1)


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of RGB in float64: Gaussian window 11x11, sigma 1.5, K 0.01 and 0.03 (Wang et al. 2004).

    Population covariance, only windows inside the frame, mean over color channels. Computed on the CPU.
    Raises InputError for frames smaller than 11x11 pixels.
    """
    _check(video, reference)
    if min(video.shape[-2:]) < 11:
        raise InputError(f"SSIM needs frames of at least 11x11 pixels, found {tuple(video.shape[-2:])}")
    # SSIM compares means, so unlike PSNR it depends on the offset of the range; it is defined for [0, 1].
    a, b = (rearrange(v.double() / 2 + 0.5, "b c t h w -> b t h w c").cpu().numpy() for v in (video, reference))
    return torch.tensor(
        [np.mean([_ssim_of_frame(*frames) for frames in zip(*pair, strict=True)]) for pair in zip(a, b, strict=True)]
    )


@torch.no_grad()
def lpips(video: Tensor, reference: Tensor, network: Backbone = "alex", weights: str | None = None) -> Tensor:
    """LPIPS v0.1 in float32 (`odvae.lpips`), by default with AlexNet, the usual backbone for scores.

    `weights` is a file with the backbone's ImageNet weights; None: torchvision's, downloaded once.
    Raises InputError where they cannot be loaded.
    """
    _check(video, reference)
    distance = load_lpips(network, weights, video.device)
    pairs = zip(video.float(), reference.float(), strict=True)
    return torch.stack([distance(a.transpose(0, 1), b.transpose(0, 1)).mean() for a, b in pairs])


def _ssim_of_frame(frame: np.ndarray, reference: np.ndarray) -> float:
    _, similarity = structural_similarity(
        frame,
        reference,
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(similarity[5:-5, 5:-5].mean())


def _check(video: Tensor, reference: Tensor) -> None:
    if video.shape != reference.shape or video.ndim != 5 or video.shape[1] != 3:
        raise InputError(f"expected two videos (b, 3, t, h, w), found {tuple(video.shape)}, {tuple(reference.shape)}")
