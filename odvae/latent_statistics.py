"""Latent statistics: mean and standard deviation of each latent channel over clips, accumulated in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from odvae.clips.loader import each_clip
from odvae.clips.video_set import VideoSet
from odvae.running.progress import progress_bar
from odvae.video.pixels import to_float
from odvae.video_vae import VideoVAE


@dataclass
class ChannelSums:
    """Sums over the latents z = mean + std * noise, from which their statistics are computed; sums can be added.

    `count` is the number of positions; `total` and `square` (c,) are the sums of mean and of mean^2 + std^2, the
    expected value of z^2.
    """

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    square: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, mean: Tensor, std: Tensor) -> None:
        """Add one clip's posterior, mean and std (c, t, h, w)."""
        mean, std = mean.double().cpu(), std.double().cpu()
        self.count += mean[0].numel()
        self.total = self.total + mean.sum(dim=(1, 2, 3))
        self.square = self.square + (mean.square() + std.square()).sum(dim=(1, 2, 3))

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(self.count + other.count, self.total + other.total, self.square + other.square)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation, one value per channel each."""
        mean = self.total / self.count
        return mean.tolist(), (self.square / self.count - mean.square()).sqrt().tolist()

    def to_json(self) -> dict:
        return {"count": self.count, "total": self.total.tolist(), "square": self.square.tolist()}

    @classmethod
    def from_json(cls, values: dict) -> ChannelSums:
        total, square = (torch.tensor(values[name], dtype=torch.float64) for name in ("total", "square"))
        return cls(values["count"], total, square)


@torch.no_grad()
def latent_statistics(
    vae: VideoVAE, videos: VideoSet, clips: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over training clips, posterior noise included, in float64."""
    sums, chosen = ChannelSums(), videos.train[:clips]
    vae.to(device)
    with progress_bar("latent statistics", 0, len(chosen), unit="clip") as bar:
        for _, clip in each_clip(chosen, videos.data, len(videos.samples)):
            posterior = vae.encode(to_float(clip).unsqueeze(0).to(device)).latent_dist
            sums.add(posterior.mean[0], posterior.std[0])
            bar.update()
    return sums.mean_and_std()
