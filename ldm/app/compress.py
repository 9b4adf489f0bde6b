"""Compression of a dropped video for the page: what the VAE keeps of it, in pictures and numbers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from ldm.app.limits import Limits, whole_number
from ldm.app.model import Model
from ldm.report.page import data_uri, render_page
from odvae.architecture.frame_counts import check_frame_count
from odvae.clips.clip import fit_frames
from odvae.evaluation.latent_measures import LatentSums
from odvae.metrics import psnr, ssim
from odvae.running.errors import InputError
from odvae.running.precision import autocast
from odvae.video.decoding import VideoError, decoding
from odvae.video.display import Display
from odvae.video.frame_grid import frame_grid
from odvae.video.pixels import to_float, to_uint8
from odvae.video.stream import VideoStream
from odvae.video.video_io import encode_video

DIFFERENCE_GAIN = 4
SMALLEST_SIDE = 16  # SSIM needs 11 pixels


@dataclass(frozen=True)
class Compressed:
    """A clip, its reconstruction (1, 3, t, h, w) in [-1, 1], and the posterior of its latents (1, c, k, h/s, w/s)."""

    video: Tensor
    reconstruction: Tensor
    mean: Tensor
    std: Tensor
    fps: float

    @property
    def difference(self) -> Tensor:
        """Absolute difference times DIFFERENCE_GAIN, (1, 3, t, h, w) in [-1, 1]; black where there is none."""
        return (DIFFERENCE_GAIN * (self.video - self.reconstruction).abs() - 1).clamp(max=1)


def compress(model: Model, data: bytes, name: str, frames: Any, side: Any) -> str:
    """The first frames of a video and what the VAE makes of them, as a piece of HTML. Errors: see `compress_clip`."""
    made = compress_clip(model, data, name, frames, side)
    _, _, t, h, w = made.video.shape
    videos = {
        "original": made.video,
        "reconstruction": made.reconstruction,
        f"difference, {DIFFERENCE_GAIN} times": made.difference,
    }
    return render_page(
        "app_compressed.html.j2",
        name=name,
        videos={label: _video_uri(video, made.fps) for label, video in videos.items()},
        channels=[_png_uri(picture) for picture in channel_pictures(made.mean)],
        numbers=numbers_of(made, getattr(model.pipeline.vae.config, "latents_mean", None) is not None, model),
        size=f"{t} frames of {w}x{h}",
    )


def compress_clip(model: Model, data: bytes, name: str, frames: Any, side: Any) -> Compressed:
    """Encode the first `frames` frames, whose shorter side is scaled to `side` pixels, and decode them again.

    Raises InputError for what is no video, is too short, or goes beyond the limits.
    """
    vae, limits = model.pipeline.vae, model.limits
    limits.check_upload(data, name)
    frames = whole_number(frames, "the number of frames", 1, limits.clip_pixels // SMALLEST_SIDE**2)
    check_frame_count(frames, vae.temporal_compression_ratio, "the number of frames")
    side = whole_number(side, "the shorter side", SMALLEST_SIDE, 4096)
    video, fps = read_clip(data, name, frames, side, vae.spatial_compression_ratio, limits)
    pixels = to_float(video)[None]
    with model.lock, torch.no_grad(), autocast(model.settings.precision, vae.device):
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        decoded = vae.decode(posterior.mean).sample
    mean, std = posterior.mean.float().cpu(), posterior.std.float().cpu()
    return Compressed(pixels, decoded.float().clamp(-1, 1).cpu(), mean, std, fps)


def read_clip(data: bytes, name: str, frames: int, side: int, factor: int, limits: Limits) -> tuple[Tensor, float]:
    """uint8 (frames, h, w, 3), h and w multiples of `factor` and of 2, and the video's frames per second."""
    with decoding(name), VideoStream(data, name) as stream:
        limits.check_file_pixels(stream.stream.height, stream.stream.width, name)
        display, clip = Display(name, stream.pixel_aspect), []
        for frame in islice(stream.frames(), frames):
            limits.check_file_pixels(frame.height, frame.width, name)  # a stream may change its size
            pixels = display.rgb(frame)
            if not clip:
                height, width = clip_size(pixels.shape[0], pixels.shape[1], side, factor)
                limits.check_clip(frames, height, width)
            clip.append(fit_frames(pixels[None], height, width)[0])
        if not clip:
            raise VideoError(f"{name}: has no frame that can be decoded")
        if len(clip) < frames:
            raise InputError(f"{name} has {len(clip)} frames, but {frames} are to be compressed: choose fewer")
        return torch.stack(clip), min(max(stream.rate, 1.0), 60.0)


def clip_size(height: int, width: int, side: int, factor: int) -> tuple[int, int]:
    """Height and width with the shorter one near `side` and the same shape, both multiples of `factor` and of 2."""
    step = factor if factor % 2 == 0 else 2 * factor
    scale = side / min(height, width)
    rounded = [max(1, round(length * scale / step)) * step for length in (height, width)]
    return rounded[0], rounded[1]


def numbers_of(made: Compressed, has_statistics: bool, model: Model) -> list[tuple[str, str, str]]:
    """(Name, value, what it means) of each number below the videos."""
    _, channels, k, h, w = made.mean.shape
    pixels = made.video[0, 0].numel()
    if has_statistics:
        config = model.pipeline.vae.config
        center, scale = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    else:
        center = made.mean.mean(dim=(0, 2, 3, 4))
        scale = (made.mean.var(dim=(0, 2, 3, 4)) + made.std.square().mean(dim=(0, 2, 3, 4))).sqrt()
    sums = LatentSums()
    sums.add(torch.cat([made.mean[0], made.std[0]]), center, scale, pixels)
    ratio = made.video.numel() / made.mean.numel()
    return [
        ("PSNR", f"{float(psnr(made.reconstruction, made.video)[0]):.2f} dB", "mean over frames, peak 2"),
        ("SSIM", f"{float(ssim(made.reconstruction, made.video)[0]):.3f}", "mean over frames"),
        ("latents", f"{channels}x{k}x{h}x{w}", f"one number for {ratio:.0f} color values"),
        (
            "stored",
            f"{16 * made.mean.numel() / pixels:.2f} bits/pixel",
            "latents in 16 bits; uncompressed video has 24",
        ),
        ("information", f"{sums.rate / pixels:.2f} bits/pixel", "KL of the posterior to each channel's Gaussian"),
    ]


def channel_pictures(latents: Tensor) -> list[np.ndarray]:
    """A uint8 picture of each channel of (1, c, k, h, w): its frames, blue below its mean, red above, 3 deviations."""
    pictures = []
    for channel in latents[0]:
        deviations = (channel - channel.mean()) / channel.std(correction=0).clamp(min=1e-6)
        colored = colormaps["coolwarm"]((deviations.numpy() + 3) / 6)[..., :3]  # (k, h, w, 3) in [0, 1]
        pictures.append(frame_grid([(255 * colored).round().astype(np.uint8)]))
    return pictures


def _video_uri(video: Tensor, fps: float) -> str:
    frames = to_uint8(video[0])
    _, height, width, _ = frames.shape
    return data_uri(encode_video(iter(frames), height, width, fps), "video/mp4")


def _png_uri(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return data_uri(buffer.getvalue(), "image/png")
