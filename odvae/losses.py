"""The VAE's training loss: reconstruction and KL, as means a person can read.

The paper sums the reconstruction over a frame's 3*h*w values and the KL over a clip's latents, weighted 1 : 1e-6.
Here both are divided by the number of pixel values, which leaves the gradient's direction as it is: a weight `kl` on
`kl_per_pixel` equals the paper's weight kl / t for clips of t frames (1e-6 at 25 frames is kl = 2.5e-5).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from odvae.shared.settings import Settings


class LossSettings(Settings):
    reconstruction: Literal["l1", "l2"] = "l1"
    """Mean absolute or mean squared error of pixels in [-1, 1]."""
    kl: float = Field(2.5e-5, ge=0)
    """Weight of the KL divergence to N(0, 1), which is summed over the latents and divided by the pixel values."""


def reconstruction_loss(reconstruction: Tensor, video: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Mean over all pixel values; fp32 whatever the inputs are."""
    difference = reconstruction.float() - video.float()
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


def kl_per_pixel(mean: Tensor, logvar: Tensor, video: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over all latents, divided by the video's pixel values."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * torch.sum(mean.square() + logvar.exp() - 1 - logvar) / video.numel()


def vae_loss(
    reconstruction: Tensor, video: Tensor, mean: Tensor, logvar: Tensor, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise, and its parts (detached) for the log."""
    difference = reconstruction_loss(reconstruction, video, settings.reconstruction)
    divergence = kl_per_pixel(mean, logvar, video)
    loss = difference + settings.kl * divergence
    parts = {"loss": loss, settings.reconstruction: difference, "kl": divergence}
    return loss, {name: part.detach() for name, part in parts.items()}
