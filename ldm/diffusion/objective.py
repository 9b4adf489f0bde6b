"""The diffusion objective: paths from data to noise, prediction targets, noise levels and loss weights.

Symbols: x data, eps noise, time in [0, 1] the timestep on the path from data to noise, z = alpha x + sigma eps the
noisy data. Pure functions of tensors; values (b,) broadcast over samples (b, ...). Sources:
- rectified flow: Liu et al. 2022 (arXiv 2209.03003), equation 1
- logit-normal timesteps, resolution shift: Esser et al. 2024 (arXiv 2403.03206), equations 19 and 23
- epsilon: Ho et al. 2020 (arXiv 2006.11239), equation 14; v: Salimans & Ho 2022 (arXiv 2202.00512), appendix D
- zero terminal SNR: Lin et al. 2023 (arXiv 2305.08891), algorithm 1
- min-SNR weights: Hang et al. 2023 (arXiv 2303.09556), section 3.4
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.settings import NoiseSchedule, ObjectiveSettings, Prediction
from odvae.running.errors import InputError
from odvae.running.settings import find_renamed

DIFFUSION_STEPS = 1000  # noise levels of variance-preserving diffusion; their timesteps are 0/1000 ... 999/1000
BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}  # Ho et al. 2020; Stable Diffusion


def objective_of(config: Mapping[str, Any]) -> ObjectiveSettings:
    """The objective a network was trained with, from its config. Raises InputError for a config of version 0.1."""
    objective = dict(config["objective"] or {})
    if renamed := find_renamed(ObjectiveSettings, objective):
        names = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        raise InputError(
            f"the network in {config.get('_name_or_path', 'use')} was trained by version 0.1; in its config's "
            f"objective {names}. Train it again, or sample from it with version 0.1 (docs/changes.md)"
        )
    return ObjectiveSettings.model_validate(objective)


def alpha_sigma(time: Tensor, objective: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at times (b,): the coefficients of data and of noise."""
    if objective.prediction == "flow":
        return 1 - time, time
    table = _alphas_on(objective.noise_schedule, objective.zero_terminal_snr, time.device, time.dtype)
    alpha_squared = table[(time * DIFFUSION_STEPS).round().long()]
    return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()


def add_noise(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z = alpha x + sigma eps."""
    return _as(alpha, x) * x + _as(sigma, x) * eps


def target(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Regression target: eps - x (flow), eps (epsilon), alpha eps - sigma x (v), or x (x0)."""
    if prediction == "flow":
        return eps - x
    if prediction == "epsilon":
        return eps
    if prediction == "v":
        return _as(alpha, x) * eps - _as(sigma, x) * x
    return x


def predict_x0(z: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Recover x from the network's output at z; for "epsilon" alpha must not be 0."""
    if prediction == "flow":
        return z - _as(sigma, z) * output
    if prediction == "epsilon":
        return (z - _as(sigma, z) * output) / _as(alpha, z)
    if prediction == "v":
        return _as(alpha, z) * z - _as(sigma, z) * output
    return output


def predict_eps(z: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Recover eps from the network's output at z; for "x0" sigma must not be 0."""
    if prediction == "flow":
        return z + _as(alpha, z) * output
    if prediction == "epsilon":
        return output
    if prediction == "v":
        return _as(sigma, z) * z + _as(alpha, z) * output
    return (z - _as(alpha, z) * output) / _as(sigma, z)


def min_snr_weight(alpha: Tensor, sigma: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Weights (b,) of the output's squared error that amount to weights min(SNR, gamma) of the squared error of x0.

    An error e of the output is an error s e of x0, with s = sigma (flow, v), sigma / alpha (epsilon), 1 (x0).
    """
    snr = alpha.square() / sigma.square()
    scale = {"flow": sigma, "epsilon": sigma / alpha, "v": sigma, "x0": torch.ones_like(sigma)}[prediction]
    return snr.clamp(max=gamma) * scale.square()


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


def _as(value: Tensor, x: Tensor) -> Tensor:
    return value.view(-1, *[1] * (x.ndim - 1))
