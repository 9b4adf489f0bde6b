"""Local correlation of latents, and its regularization (LCR) in training.

Latents in which neighbors are alike have most of their energy at low frequencies, which a diffusion model learns first
(SSVAE: Liu et al. 2025, arXiv 2512.05394, "Local Correlation Regularization").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn

from odvae.regularizers.settings import LocalCorrelationSettings
from odvae.running.errors import InputError

WINDOW = 2  # latent positions along each axis
DECAY = 0.9  # of the running statistics, per step


def local_correlation(latents: Tensor) -> Tensor:
    """Mean Pearson correlation of neighboring latents, normalized per channel: (b, c, t, h, w) -> (b,).

    The vectors of c channels in a window of 2x2x2 positions are correlated in pairs; the mean is over pairs, then over
    windows that do not overlap. The first frame, which a causal VAE encodes alone, has windows of 1x2x2; the result is
    the mean of the first frame's and the later frames' correlation. A single later frame has windows of 1x2x2 too; what
    does not fill a window at the end of an axis is left out. A vector that is equal in all channels correlates with
    none.

    Raises InputError for latents with one channel, and with height and width of one position.
    """
    _, channels, frames, height, width = latents.shape
    if channels < 2 or max(height, width) < 2:
        raise InputError(
            f"local correlation needs two channels and two neighbors, found latents {tuple(latents.shape)}"
        )
    first = _window_correlation(latents[:, :, :1])
    return first if frames == 1 else (first + _window_correlation(latents[:, :, 1:])) / 2


def _window_correlation(latents: Tensor) -> Tensor:
    """Mean correlation in windows of 2 positions along each axis that has so many: (b, c, t, h, w) -> (b,)."""
    window = [min(WINDOW, size) for size in latents.shape[2:]]
    t, h, w = (size // step * step for size, step in zip(latents.shape[2:], window, strict=True))
    pattern = "b c (t wt) (h wh) (w ww) -> b (t h w) (wt wh ww) c"
    sizes = dict(zip(("wt", "wh", "ww"), window, strict=True))
    vectors = rearrange(latents[:, :, :t, :h, :w], pattern, **sizes)  # (b, windows, n, c)
    unit = F.normalize(vectors - vectors.mean(dim=-1, keepdim=True), dim=-1)
    n = unit.shape[2]
    # The sum over all pairs of different vectors is |sum of vectors|^2 - sum of |vector|^2.
    pairs = unit.sum(dim=2).square().sum(dim=-1) - unit.square().sum(dim=(2, 3))
    return pairs.mean(dim=1) / (n * (n - 1))


class RunningStatistics(nn.Module):
    """Running mean and mean square of each channel, (c,), over the global batches of the past steps; a checkpoint has
    them. `steps` counts the steps that were added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.zeros(channels))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def std(self) -> Tensor:
        """The channels' standard deviation (c,); 1 before the first step."""
        variance = (self.square - self.mean.square()).clamp(min=1e-12)
        return torch.where(self.steps > 0, variance, 1.0).sqrt()

    @torch.no_grad()
    def add(self, mean: Tensor, square: Tensor) -> None:
        """Add a step's means. A step with values that are not finite is left out."""
        finite = torch.isfinite(mean).all() & torch.isfinite(square).all()
        decay = torch.where(self.steps > 0, DECAY, 0.0)
        for buffer, value in ((self.mean, mean), (self.square, square)):
            buffer.copy_(torch.where(finite, decay * buffer + (1 - decay) * value, buffer))
        self.steps += finite


class LocalCorrelationLoss:
    """weight * relu(target - local correlation), of the posterior's mean, averaged over clips.

    Channels are normalized by the mean and standard deviation of the past steps' global batches, without gradient;
    SSVAE takes those of the present batch, and the relu of the batch's correlation. Here both are such that the
    gradient does not depend on how a batch is divided into ranks and micro-steps. In the first step there are no
    statistics yet, and the term is 0.
    """

    def __init__(self, settings: LocalCorrelationSettings, channels: int, accelerator: Accelerator) -> None:
        self.settings, self.accelerator = settings, accelerator
        self.state = RunningStatistics(channels).to(accelerator.device)
        self._begin_step()

    def _begin_step(self) -> None:
        self.sums = torch.zeros(2, len(self.state.mean), device=self.accelerator.device)
        self.micro_steps = 0

    def __call__(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mean (b, c, t, h, w) of a micro-step -> (weighted loss, mean correlation, detached)."""
        mean = mean.float()
        values = mean.detach()
        self.sums += torch.stack([values.mean(dim=(0, 2, 3, 4)), values.square().mean(dim=(0, 2, 3, 4))])
        self.micro_steps += 1
        center, scale = (value.view(-1, 1, 1, 1) for value in (self.state.mean, self.state.std))
        correlation = local_correlation((mean - center) / scale)  # (b,)
        hinge = F.relu(self.settings.target - correlation).mean()
        return self.settings.weight * (self.state.steps > 0) * hinge, correlation.detach().mean()

    def end_step(self) -> None:
        """Add the step's statistics, over all ranks and micro-steps. Collective."""
        self.state.add(*self.accelerator.reduce(self.sums / self.micro_steps, "mean"))
        self._begin_step()
