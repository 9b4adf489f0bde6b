"""Reconstruction of clips for the evaluation, in each mode, and their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odvae.clips.settings import DataSettings
from odvae.evaluation.motion_error import motion_error
from odvae.measuring import now
from odvae.metrics import lpips, psnr, ssim
from odvae.running.seeds import normal_per_sample
from odvae.settings import EvalVAESettings, Mode
from odvae.video_vae import VideoVAE


@dataclass(frozen=True)
class Evaluation:
    """Settings, data, VAE and seed of one evaluation."""

    settings: EvalVAESettings
    data: DataSettings
    vae: VideoVAE
    seed: int

    def reconstruct(
        self, video: Tensor, indices: Sequence[int], mode: Mode = "whole"
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Video (b, 3, t, h, w) -> reconstruction, moments (b, 2c, k, h/s, w/s), and seconds of encoding and decoding.

        The moments are the posterior's mean and std, concatenated along channels. `indices` (b) are the clips' indices
        in the evaluation; the noise of sampled latents is a function of them.
        """
        device = self.vae.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            start = now(device)
            moments = torch.cat(list(self._encode(video, mode)), dim=2)  # (b, 2c, k, h/s, w/s)
            encoded = now(device)
            mean, std = moments.chunk(2, dim=1)
            latents = mean
            if self.settings.latents == "sample":
                noise = normal_per_sample(mean.shape[1:], self.seed, "evaluation", indices, device)
                latents = mean + std * noise
            reconstruction = torch.cat(list(self._decode(latents, mode)), dim=2)
            decoded = now(device)
        seconds = {"encode": encoded - start, "decode": decoded - encoded}
        return reconstruction.float().clamp(-1, 1), moments.float(), seconds

    def _encode(self, video: Tensor, mode: Mode) -> Iterator[Tensor]:
        if mode == "streamed":
            posteriors = self.vae.encode_stream(video.split(self.settings.chunk, dim=2))
        else:
            posteriors = iter([self.vae.encode(video).latent_dist])
        for posterior in posteriors:
            yield torch.cat([posterior.mean, posterior.std], dim=1)

    def _decode(self, latents: Tensor, mode: Mode) -> Iterator[Tensor]:
        if mode == "streamed":
            return self.vae.decode_stream(latents.split(1, dim=2))
        return iter([self.vae.decode(latents).sample])


def scores(reconstruction: Tensor, video: Tensor, settings: EvalVAESettings) -> dict[str, float]:
    """PSNR, SSIM and, unless `settings.lpips` is None, LPIPS of one video (1, 3, t, h, w); of its moving pixels too.

    Scores of moving pixels are left out for an image, and but for their share where nothing moves.
    """
    values = {"psnr": psnr(reconstruction, video), "ssim": ssim(reconstruction, video)}
    if settings.lpips is not None:
        values["lpips"] = lpips(reconstruction, video, settings.lpips.network, settings.lpips.weights)
    if video.shape[2] > 1:
        motion = motion_error(reconstruction, video, settings.motion_threshold)
        values |= {"moving_share": motion.moving, "moving_psnr": motion.psnr, "moving_mae": motion.mae}
    found = {name: float(value[0]) for name, value in values.items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def motion_summary(rows: Sequence[Mapping[str, Any]], threshold: float) -> dict:
    """Means of the scores of moving pixels, over the clips in which something moves; None where nothing does."""
    moving = [row for row in rows if "moving_psnr" in row]
    shares = [row["moving_share"] for row in rows if "moving_share" in row]
    return {
        "psnr": float(np.mean([row["moving_psnr"] for row in moving])) if moving else None,
        "mae": float(np.mean([row["moving_mae"] for row in moving])) if moving else None,
        "moving_share": float(np.mean(shares)) if shares else None,
        "n": len(moving),
        "protocol": f"pixels of which a color differs by more than {threshold:g} of 255 levels from the frame before "
        "in the original; one error a clip (PSNR in dB, peak 2; mean absolute error in levels), mean over clips",
    }
