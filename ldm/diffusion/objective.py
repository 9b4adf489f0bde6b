"""The diffusion objective: paths from data to noise, prediction targets and loss weights.

Symbols: x data, eps noise, time in [0, 1] the timestep on the path from data to noise, z = alpha x + sigma eps the
noisy data. Pure functions of tensors; values (b,) broadcast over samples (b, ...). Sources:
- rectified flow: Liu et al. 2022 (arXiv 2209.03003), equation 1
- epsilon: Ho et al. 2020 (arXiv 2006.11239), equation 14; v: Salimans & Ho 2022 (arXiv 2202.00512), appendix D
- min-SNR weights: Hang et al. 2023 (arXiv 2303.09556), section 3.4
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.settings import ObjectiveSettings, Prediction
from odvae.running.errors import InputError
from odvae.running.settings import find_renamed


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


def _as(value: Tensor, x: Tensor) -> Tensor:
    return value.view(-1, *[1] * (x.ndim - 1))
