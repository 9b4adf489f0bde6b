"""How weights begin: from scratch, or from an image VAE's by the paper's tail initialization (section 3.3).

A 2D kernel fills the last time slice of a 3D one (tail), or is spread evenly over all slices (average). The tensors'
names are the same in both models, so only the kernels' shapes differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from odvae.running.errors import InputError

if TYPE_CHECKING:
    from odvae.settings import Init


def inflate(kernel: Tensor, slices: int, init: Init) -> Tensor:
    """A 2D kernel (o, i, h, w) -> a 3D kernel (o, i, slices, h, w) (paper, equation 2)."""
    if init == "average":
        return kernel.unsqueeze(2).repeat(1, 1, slices, 1, 1) / slices
    inflated = kernel.new_zeros(*kernel.shape[:2], slices, *kernel.shape[2:])
    inflated[:, :, -1] = kernel
    return inflated


def inflate_state(image: dict[str, Tensor], video: dict[str, Tensor], init: Init) -> dict[str, Tensor]:
    """The image VAE's tensors in the shapes of the video VAE's.

    Raises InputError with the name of a missing, extra or misshapen tensor.
    """
    if image.keys() != video.keys():
        missing, extra = sorted(video.keys() - image.keys()), sorted(image.keys() - video.keys())
        raise InputError(f"the image VAE's tensors do not match: missing {missing[:5]}, not expected {extra[:5]}")
    state = {}
    for name, like in video.items():
        tensor = inflate(image[name], like.shape[2], init) if like.ndim == 5 else image[name]
        if tensor.shape != like.shape:
            raise InputError(f"{name}: the image VAE has {tuple(tensor.shape)}, OD-VAE {tuple(like.shape)}")
        state[name] = tensor.to(like.dtype)
    return state


def add_quant_convolutions(image: dict[str, Tensor], latent_channels: int) -> dict[str, Tensor]:
    """The image VAE's tensors, with 1x1 quant convolutions that change nothing where it has none (SD3, FLUX)."""
    identities = {}
    for name, channels in (("quant_conv", 2 * latent_channels), ("post_quant_conv", latent_channels)):
        identities[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
        identities[f"{name}.bias"] = torch.zeros(channels)
    return {**identities, **image}


@torch.no_grad()
def initialize_from_scratch(vae: nn.Module) -> None:
    """Give a VAE (image or video) weights that learn fast from nothing; in place.

    Convolutions keep their input's variance, each residual block starts as the identity, and the posterior starts
    narrow (standard deviation e^-3), so that the decoder sees a signal from the first step. With torch's defaults a
    small VAE spends hundreds of steps on gray pictures first (LOG.md has the measurement).
    """
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
            if name.endswith(".conv2"):
                nn.init.zeros_(module.weight)
    _, log_variance = vae.quant_conv.weight.chunk(2, dim=0)
    log_variance.mul_(0.1)
    vae.quant_conv.bias.chunk(2)[1].fill_(-6.0)
