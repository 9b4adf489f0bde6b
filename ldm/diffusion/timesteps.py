"""Timesteps: their distribution in training, their shift with the resolution, and the noise level at each of them.

Pure functions. Symbols as in `ldm.diffusion.objective`. Sources:
- logit-normal timesteps, resolution shift: Esser et al. 2024 (arXiv 2403.03206), equations 19 and 23
- zero terminal SNR: Lin et al. 2023 (arXiv 2305.08891), algorithm 1
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ldm.diffusion.settings import NoiseSchedule, ObjectiveSettings

DIFFUSION_STEPS = 1000  # noise levels of variance-preserving diffusion; their timesteps are 0/1000 ... 999/1000
BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}  # Ho et al. 2020; Stable Diffusion


def training_time(u: Tensor, objective: ObjectiveSettings, shift: float = 1.0) -> Tensor:
    """Map uniform u (b,) in [0, 1] to training timesteps (b,): their quantile function.

    Diffusion timesteps are multiples of 1/1000. `shift` is the value of `shift_for`.
    """
    time = u
    if objective.timestep_sampling == "logit_normal":
        time = torch.sigmoid(objective.logit_mean + objective.logit_std * torch.special.ndtri(u))
    if objective.prediction == "flow":
        return shift_time(time, shift)
    return (time * DIFFUSION_STEPS).floor().clamp(max=DIFFUSION_STEPS - 1) / DIFFUSION_STEPS


def shift_time(time: Tensor, shift: float) -> Tensor:
    """s t / (1 + (s - 1) t): keeps 0 and 1, and moves timesteps between them towards noise for s > 1."""
    return shift * time / (1 + (shift - 1) * time)


def shift_for(positions: int, objective: ObjectiveSettings) -> float:
    """The timestep shift for latents with this many positions (t * h * w).

    With more positions the same noise destroys less information, in proportion to the square root of their number.
    """
    if objective.shift_base_tokens is None:
        return objective.shift
    return objective.shift * math.sqrt(positions / objective.shift_base_tokens)


def alpha_sigma(time: Tensor, objective: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at times (b,): the coefficients of data and of noise."""
    if objective.prediction == "flow":
        return 1 - time, time
    table = _alphas_on(objective.noise_schedule, objective.zero_terminal_snr, time.device, time.dtype)
    alpha_squared = table[(time * DIFFUSION_STEPS).round().long()]
    return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()


def alphas_cumprod(schedule: NoiseSchedule, zero_terminal_snr: bool) -> Tensor:
    """alpha^2 at each diffusion timestep, (1000,) float64, decreasing."""
    if schedule == "cosine":
        angle = (torch.arange(DIFFUSION_STEPS + 1, dtype=torch.float64) / DIFFUSION_STEPS + 0.008) / 1.008 * math.pi / 2
        alpha_bar = angle.cos().square()
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    else:
        first, last = BETAS[schedule]
        power = 0.5 if schedule == "scaled_linear" else 1.0
        betas = torch.linspace(first**power, last**power, DIFFUSION_STEPS, dtype=torch.float64) ** (1 / power)
    products = (1 - betas).cumprod(0)
    return zero_terminal(products) if zero_terminal_snr else products


def zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """Rescale alpha so that the last level is pure noise and the first is unchanged."""
    alpha = alphas_cumprod.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).square()


@functools.lru_cache(maxsize=8)
def _alphas_on(schedule: NoiseSchedule, zero: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    return alphas_cumprod(schedule, zero).to(device, dtype)  # cached: a copy to a GPU in each step would synchronize
