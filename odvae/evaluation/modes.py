"""Comparison of the modes of a VAE, whole clips, streamed and tiled, and of decoding with noise in the latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odvae.clips.clip import load_clip
from odvae.evaluation.latent_measures import noise_robustness
from odvae.evaluation.reconstruction import Evaluation, scores
from odvae.latent_statistics import ChannelSums
from odvae.measuring import PeakMemory
from odvae.metrics import psnr
from odvae.running.seeds import normal_per_sample
from odvae.settings import Mode
from odvae.shards.samples import Sample
from odvae.video.frame_grid import frame_grid, save_image
from odvae.video.pixels import to_float, to_uint8


@torch.no_grad()
def compare_modes(evaluation: Evaluation, samples: list[Sample], report: Path) -> dict:
    """Quality, speed and peak memory of whole-clip mode and of each other mode, on the same clips, by mode.

    `difference` is the largest absolute pixel difference, in [-1, 1] units, from the whole-clip reconstruction. Also
    writes an image of originals and reconstructions into `report`.
    """
    videos = [to_float(load_clip(sample, evaluation.data)).unsqueeze(0) for sample in samples]
    results, whole = {}, []
    for mode in ("whole", *evaluation.settings.modes):
        if (reason := _unsupported_reason(evaluation, mode)) is not None:
            results[mode] = {"not measured": reason}
            continue
        reconstructions, row = _measure_mode(evaluation, videos, mode)
        if mode == "whole":
            whole = reconstructions
        else:
            row["difference"] = max(float((a - b).abs().max()) for a, b in zip(reconstructions, whole, strict=True))
        results[mode] = row
        if mode == "whole":
            pairs = [to_uint8(v[0]) for pair in zip(videos[:4], reconstructions[:4], strict=True) for v in pair]
            save_image(report / "reconstructions.png", frame_grid(pairs))
    return results


def _measure_mode(evaluation: Evaluation, videos: list[Tensor], mode: Mode) -> tuple[list[Tensor], dict]:
    vae, settings = evaluation.vae, evaluation.settings
    if mode == "tiled":
        vae.enable_tiling(None, None, settings.tile_frames)  # type: ignore[attr-defined]  # has_temporal_tiling is True
    device = vae.device
    memory = PeakMemory(device)
    evaluation.reconstruct(videos[0].to(device), [0], mode)  # warm-up, not timed: kernels are chosen, memory allocated
    peak, reconstructions, rows = memory.bytes, [], []
    seconds = {"encode": 0.0, "decode": 0.0}
    for i, video in enumerate(videos):
        reconstruction, _, elapsed = evaluation.reconstruct(video.to(device), [i], mode)
        seconds = {half: seconds[half] + elapsed[half] for half in seconds}
        reconstructions.append(reconstruction.cpu())
        rows.append(scores(reconstructions[-1], video, settings))
    if mode == "tiled":
        vae.disable_tiling()  # type: ignore[attr-defined]
    frames = sum(video.shape[2] for video in videos)
    clips = {"clip_psnr": [row["psnr"] for row in rows]}  # so that two modes can be compared clip by clip
    return reconstructions, {
        **{name: float(np.mean([row[name] for row in rows])) for name in rows[0]},
        **{f"{half}_frames_per_second": frames / elapsed for half, elapsed in seconds.items()},
        "peak_memory_growth_mb": None if peak is None else peak / 1e6,
        "clips": len(videos),
        **clips,
    }


def _unsupported_reason(evaluation: Evaluation, mode: Mode) -> str | None:
    """Why the VAE does not support this mode; None if it does."""
    vae = evaluation.vae
    if mode == "tiled" and not vae.has_temporal_tiling:
        if vae.temporal_compression_ratio == 1:
            return "the VAE works frame by frame, so temporal tiling does not apply"
        return f"{type(vae).__name__} has no temporal tiling with a configurable number of frames"
    if mode == "streamed" and not vae.streamable:
        return f"{type(vae).__name__} with this configuration needs the whole clip: frames depend on later ones"
    return None


@torch.no_grad()
def compare_noise(evaluation: Evaluation, samples: list[Sample], sums: ChannelSums) -> dict:
    """The mean drop in PSNR when the posterior's mean is decoded with noise, by the noise's level, and the protocol.

    `sums` are of the latents, for each channel's standard deviation.
    """
    vae, levels = evaluation.vae, evaluation.settings.noise_levels
    channel_std = torch.tensor(sums.mean_and_std()[1])
    drops = []
    for index, sample in enumerate(samples):
        video = to_float(load_clip(sample, evaluation.data)).unsqueeze(0).to(vae.device)
        mean = vae.encode(video).latent_dist.mean
        noise = normal_per_sample(mean.shape[1:], evaluation.seed, "latent noise", [index], vae.device)

        def decode(latents: Tensor) -> Tensor:
            return vae.decode(latents).sample.float().clamp(-1, 1)

        def score(reconstruction: Tensor, video: Tensor = video) -> float:
            return float(psnr(reconstruction, video)[0])

        drops.append(noise_robustness(decode, mean, channel_std, noise, levels, score))
    return {
        "psnr_drop": {f"{level:g}": float(np.mean([drop[level] for drop in drops])) for level in levels},
        "n": len(drops),
        "protocol": "PSNR of the decoded posterior mean, minus that with Gaussian noise of so many standard deviations "
        "of the channel (over all clips), fp32",
    }
