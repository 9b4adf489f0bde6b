"""Inflation of an image VAE's 2D weights to the video VAE's 3D weights (tail initialization, paper section 3.3).

A 2D kernel becomes the last time slice of a 3D one (tail), or is spread evenly over all slices (average). The tensors
have the same names in both models; only the kernels' shapes differ.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from odvae.running.errors import InputError

Kernels = Literal["tail", "average"]  # the image VAE's kernel at the last time step, or spread evenly over time


def inflate(kernel: Tensor, slices: int, init: Kernels) -> Tensor:
    """A 2D kernel (o, i, h, w) -> a 3D kernel (o, i, slices, h, w) (paper, equation 2)."""
    if init == "average":
        return kernel.unsqueeze(2).repeat(1, 1, slices, 1, 1) / slices
    inflated = kernel.new_zeros(*kernel.shape[:2], slices, *kernel.shape[2:])
    inflated[:, :, -1] = kernel
    return inflated


def inflate_state(image: dict[str, Tensor], video: dict[str, Tensor], init: Kernels) -> dict[str, Tensor]:
    """The image VAE's tensors inflated to the shapes of the video VAE's.

    Raises InputError with the names of missing or unexpected tensors, or of a tensor of another shape.
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
    """The image VAE's tensors; where it has no quant convolutions (SD3, FLUX), identity 1x1 convolutions are added."""
    identities = {}
    for name, channels in (("quant_conv", 2 * latent_channels), ("post_quant_conv", latent_channels)):
        identities[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
        identities[f"{name}.bias"] = torch.zeros(channels)
    return {**identities, **image}
