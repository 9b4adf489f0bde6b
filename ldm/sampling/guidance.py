"""Classifier-free guidance: how conditional and unconditional predictions are combined, and when."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.networks.conditioning import Condition
from ldm.networks.network import predict
from odvae.running.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, equation 6).

    `interval`: the noise levels (times) at which it is applied; elsewhere the conditional prediction is used alone, in
    half the time (Kynkaanniemi et al. 2024, arXiv 2404.07724). `rescale`: 0 leaves the prediction as it is, 1 gives it
    the standard deviation of the conditional one (Lin et al. 2023, arXiv 2305.08891, equations 15 and 16).
    """

    scale: float = 3.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError for anything but such numbers, with the names of the pipeline's arguments."""
        if not _is_number(self.scale) or self.scale < 0:
            raise InputError(f"guidance_scale must be a number >= 0 (up to 1: no guidance); found {self.scale!r}")
        if not _is_number(self.rescale) or not 0 <= self.rescale <= 1:
            raise InputError(f"guidance_rescale must be a number from 0 to 1, found {self.rescale!r}")
        bounds = self.interval
        if not isinstance(bounds, Sequence) or len(bounds) != 2 or not all(map(_is_number, bounds)):
            raise InputError(f"guidance_interval must be two noise levels, (lowest, highest), found {bounds!r}")
        if bounds[0] > bounds[1]:
            raise InputError(f"guidance_interval must be (lowest, highest), found {bounds!r}: no step would be guided")

    def applies_at(self, time: float) -> bool:
        return self.scale > 1 and self.interval[0] <= time <= self.interval[1]

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """unconditional + scale (conditional - unconditional), on all channels."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if self.rescale == 0:
            return guided
        axes = tuple(range(1, guided.ndim))
        matched = guided * (conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
        return self.rescale * matched + (1 - self.rescale) * guided


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def guided_prediction(
    network: nn.Module, condition: Condition, unconditional: Condition | None, guidance: Guidance
) -> Callable[[Tensor, float, bool], Tensor]:
    """The network as `sample_latents` calls it: conditional and unconditional prediction in one batch where guided.

    Predictions have the latents' dtype also under autocast: schedulers return latents of the prediction's dtype.
    """
    both = condition if unconditional is None else condition.concat(unconditional)

    def predict_guided(z: Tensor, time: float, guided: bool) -> Tensor:
        if not guided or unconditional is None:
            return predict(network, z, torch.full((len(z),), time, device=z.device), condition).to(z.dtype)
        doubled = torch.cat([z, z])
        times = torch.full((len(doubled),), time, device=z.device)
        predictions = predict(network, doubled, times, both).to(z.dtype)
        return guidance.combine(*predictions.chunk(2))

    return predict_guided
