"""Measures of latents that say how easily a diffusion model learns them: spectra, local correlation, rate, robustness.

Latents (b, c, t, h, w) are normalized per channel, as a diffusion model gets them: mean 0 and deviation 1 over all
evaluated clips. After SSVAE (Liu et al. 2025, arXiv 2512.05394): latents are learned faster whose energy is at low
spatio-temporal frequencies and in few directions of channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from odvae.regularizers.local_correlation import local_correlation

AXES = {"spatiotemporal": (2, 3, 4), "temporal": (2,), "spatial": (3, 4)}


def dct_matrix(n: int) -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II), (n, n) float64: row k is the wave of k half periods."""
    k, i = torch.arange(n, dtype=torch.float64).view(-1, 1), torch.arange(n, dtype=torch.float64)
    waves = torch.cos(math.pi / n * k * (i + 0.5)) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves


def spectral_energy(latents: Tensor, axes: Sequence[int]) -> tuple[float, float]:
    """(Energy at low frequencies, energy at all) of latents along some axes, without what is constant along them.

    A frequency is low if it is in the lower half along each of the axes.
    """
    spectrum = latents.double()
    low = torch.ones((), dtype=torch.float64)
    for axis in axes:
        n = spectrum.shape[axis]
        transform = dct_matrix(n).to(spectrum.device)
        spectrum = torch.tensordot(spectrum, transform, dims=([axis], [1])).movedim(-1, axis)
        low = low.to(spectrum.device).unsqueeze(-1) * (torch.arange(n, device=spectrum.device) < n / 2)
    energy = spectrum.square().sum(dim=[axis for axis in range(5) if axis not in axes])
    energy[(0,) * len(axes)] = 0  # what is constant
    return float((energy * low).sum()), float(energy.sum())


def white_share(sizes: Sequence[int]) -> float | None:
    """The share of low frequencies in white noise of these sizes, for comparison; None if nothing can vary."""
    total, low = math.prod(sizes) - 1, math.prod((size + 1) // 2 for size in sizes) - 1
    return low / total if total else None


def kl_bits(mean: Tensor, std: Tensor) -> float:
    """KL(N(mean, std^2) || N(0, 1)) in bits, summed over all latents."""
    mean, std = mean.double(), std.double().clamp(min=1e-10)
    return float((0.5 * (mean.square() + std.square() - 1) - std.log()).sum() / math.log(2))


def channel_spectrum(covariance: Tensor) -> tuple[float, float]:
    """(Effective rank, share of the largest eigenvalue) of a covariance (c, c); zeros for a covariance of zeros.

    The effective rank is exp of the entropy of the normalized eigenvalues, from 1 to c (Roy & Vetterli 2007).
    """
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    if not values.sum() > 0:
        return 0.0, 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp()), float(shares[-1])


@dataclass
class LatentSums:
    """Sums over clips from which the measures are computed; sums of ranks can be added."""

    clips: int = 0
    pixels: int = 0
    kl: float = 0.0  # bits, to N(0, 1)
    rate: float = 0.0  # bits, to the Gaussian of each channel
    correlation: float = 0.0
    energy: dict[str, tuple[float, float]] = field(default_factory=lambda: dict.fromkeys(AXES, (0.0, 0.0)))
    second_moment: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    grid: tuple[int, ...] = ()

    def add(self, moments: Tensor, channel_mean: Tensor, channel_std: Tensor, pixels: int) -> None:
        """Add a clip's posterior, mean and std concatenated, (2c, t, h, w), encoded from so many pixels.

        The channels' mean and standard deviation (c,) are those of all clips, posterior noise included.
        """
        mean, std = moments.double().unsqueeze(0).chunk(2, dim=1)  # (1, c, t, h, w)
        center, scale = (value.double().view(-1, 1, 1, 1) for value in (channel_mean, channel_std.clamp(min=1e-10)))
        normalized = (mean - center) / scale
        self.clips, self.pixels, self.grid = self.clips + 1, self.pixels + pixels, tuple(mean.shape[1:])
        self.kl += kl_bits(mean, std)
        self.rate += kl_bits(normalized, std / scale)
        if self.has_neighbors:
            self.correlation += float(local_correlation(normalized))
        for name, axes in AXES.items():
            low, total = spectral_energy(normalized, axes)
            self.energy[name] = self.energy[name][0] + low, self.energy[name][1] + total
        vectors = normalized[0].flatten(1)  # (c, t h w)
        self.second_moment = self.second_moment + vectors @ vectors.T / vectors.shape[1]

    @property
    def has_neighbors(self) -> bool:
        """Whether there are channels and neighboring positions to correlate."""
        return self.grid[0] > 1 and max(self.grid[2:]) > 1

    def __add__(self, other: LatentSums) -> LatentSums:
        energy = {name: tuple(map(sum, zip(self.energy[name], other.energy[name], strict=True))) for name in AXES}
        return LatentSums(
            self.clips + other.clips,
            self.pixels + other.pixels,
            self.kl + other.kl,
            self.rate + other.rate,
            self.correlation + other.correlation,
            energy,  # type: ignore[arg-type]  # pairs
            self.second_moment + other.second_moment,
            self.grid or other.grid,
        )

    def measures(self) -> dict:
        """The measures of all clips, with their protocol."""
        rank, largest = channel_spectrum(self.second_moment)
        _, *sizes = self.grid
        white = {name: white_share([sizes[axis - 2] for axis in axes]) for name, axes in AXES.items()}
        return {
            "low_frequency_share": {name: low / total if total else None for name, (low, total) in self.energy.items()},
            "low_frequency_share_of_white_noise": white,
            "effective_rank": rank,
            "largest_eigenvalue_share": largest,
            "local_correlation": self.correlation / self.clips if self.has_neighbors else None,
            "bits_per_pixel": self.rate / self.pixels,
            "kl_bits_per_pixel": self.kl / self.pixels,
            "n": self.clips,
            "protocol": PROTOCOL,
        }


PROTOCOL = {
    "latents": "posterior means, each channel normalized by its mean and deviation over all clips, noise included",
    "low_frequency_share": "energy of the DCT-II with indices in the lower half along each axis, without the constant",
    "effective_rank": "exp(entropy) of the eigenvalues of the channels' second moments over all positions",
    "local_correlation": "Pearson, pairs in windows of 2x2x2, first frame 1x2x2 (SSVAE)",
    "bits_per_pixel": "KL of the posterior to each channel's Gaussian over all clips, in bits a pixel of three colors",
    "kl_bits_per_pixel": "KL of the posterior to N(0, 1), which the loss has",
}


@torch.no_grad()
def noise_robustness(
    decode: Callable[[Tensor], Tensor],
    latents: Tensor,
    channel_std: Tensor,
    noise: Tensor,
    levels: Sequence[float],
    score: Callable[[Tensor], float],
) -> Mapping[float, float]:
    """The loss of quality when latents (b, c, t, h, w) are decoded with noise, by its level.

    A level is the noise's deviation in units of the channel's, (c,); `noise` is standard normal, like `latents`. The
    result is score(decoded without noise) - score(decoded with noise): a drop in dB, if the score is the PSNR.
    """
    clean = score(decode(latents))
    scale = channel_std.to(latents).view(-1, 1, 1, 1)
    return {level: clean - score(decode(latents + level * scale * noise)) for level in levels}
