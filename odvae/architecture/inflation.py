"""Weights of an OD-VAE from those of an image VAE, or of an OD-VAE that compresses less.

Inflation (tail initialization, paper section 3.3): a 2D kernel becomes the last time slice of a 3D one (tail), or is
spread evenly over all slices (average). The tensors have the same names in both models; only kernels differ in shape.

Growth: a layer that newly halves time has the kernel of the layer that did not, so it takes the first frame and every
second one after it; in the decoder each of these is repeated. What the old levels cannot give, new ones at full
resolution do (`odvae.architecture.rates.choose_growth`): their residual blocks begin as the identity, their
downsamplers as the mean of 2x2 positions or every second frame, their upsamplers as repetition. conv_in and conv_out
remain the first and the last layer.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor, nn

from odvae.architecture.layers import Downsample
from odvae.architecture.rates import Growth, Halvings
from odvae.architecture.resampling import Upsample
from odvae.running.errors import InputError
from odvae.running.text import shorten

Kernels = Literal["tail", "average"]  # the image VAE's kernel at the last time step, or spread evenly over time


def inflate(kernel: Tensor, slices: int, init: Kernels) -> Tensor:
    """A 2D kernel (o, i, h, w) -> a 3D kernel (o, i, slices, h, w) (paper, equation 2)."""
    if init == "average":
        return kernel.unsqueeze(2).repeat(1, 1, slices, 1, 1) / slices
    inflated = kernel.new_zeros(*kernel.shape[:2], slices, *kernel.shape[2:])
    inflated[:, :, -1] = kernel
    return inflated


def load_grown(vae: nn.Module, state: dict[str, Tensor], source: Halvings, growth: Growth, init: Kernels) -> None:
    """Load the weights of an image VAE or OD-VAE with `source`'s halvings into the OD-VAE that it grows to; in place.

    Raises InputError with the names of missing or unexpected tensors, or of a tensor of another shape.
    """
    shifted = {_shift_level(name, growth.outer): tensor for name, tensor in state.items()}
    new = begin_new_layers(vae, source, growth)
    own = vae.state_dict()
    begun = {name: tensor for name, tensor in own.items() if name.startswith(new)} if new else {}
    vae.load_state_dict(inflate_state({**begun, **shifted}, own, init))


def inflate_state(source: dict[str, Tensor], video: dict[str, Tensor], init: Kernels) -> dict[str, Tensor]:
    """The tensors of an image VAE, or of a VAE with some 2D kernels, inflated to the shapes of the video VAE's.

    Raises InputError with the names of missing or unexpected tensors, or of a tensor of another shape.
    """
    if source.keys() != video.keys():
        missing, extra = sorted(video.keys() - source.keys()), sorted(source.keys() - video.keys())
        raise InputError(
            f"the source VAE's tensors do not match: missing {shorten(missing)}; not expected {shorten(extra)}"
        )
    state = {}
    for name, like in video.items():
        tensor = source[name]
        if tensor.ndim == 4 and like.ndim == 5:
            tensor = inflate(tensor, like.shape[2], init)
        if tensor.shape != like.shape:
            raise InputError(f"{name}: the source VAE has {tuple(tensor.shape)}, OD-VAE {tuple(like.shape)}")
        state[name] = tensor.to(like.dtype)
    return state


@torch.no_grad()
def begin_new_layers(vae: nn.Module, source: Halvings, growth: Growth) -> tuple[str, ...]:
    """Initialize the layers that the source does not have, in place; returns the beginnings of their tensors' names."""
    down, up, levels = vae.encoder.down_blocks, vae.decoder.up_blocks, len(vae.encoder.down_blocks)
    new = []
    for i in range(growth.outer):
        for block in (*down[i].resnets, *up[levels - 1 - i].resnets):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)
        new += [f"encoder.down_blocks.{i}.resnets.", f"decoder.up_blocks.{levels - 1 - i}.resnets."]
    for i in range(levels - 1):
        j = i - growth.outer  # this place in the source
        if j >= 0 and (source.time[j] or source.space[j]):
            continue
        for layer in (*down[i].downsamplers, *up[levels - 2 - i].upsamplers):
            _begin_resampler(layer)
        new += [f"encoder.down_blocks.{i}.downsamplers.", f"decoder.up_blocks.{levels - 2 - i}.upsamplers."]
    return tuple(new)


def _begin_resampler(layer: Downsample | Upsample) -> None:
    """A downsampler as the mean of 2x2 positions (if it halves space) of a frame; an upsampler as repetition."""
    nn.init.zeros_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    kernel = layer.conv.weight[:, :, -1] if layer.conv.weight.ndim == 5 else layer.conv.weight  # (o, i, 3, 3)
    identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    if isinstance(layer, Downsample) and layer.halves_space:
        kernel[:, :, :2, :2] = identity[:, :, None, None] / 4
    else:
        kernel[:, :, 1, 1] = identity


def _shift_level(name: str, outer: int) -> str:
    """A tensor's name after `outer` new levels before the encoder's others; those of the decoder are its last."""
    return re.sub(r"(?<=^encoder\.down_blocks\.)\d+", lambda level: str(int(level[0]) + outer), name)


def add_quant_convolutions(image: dict[str, Tensor], latent_channels: int) -> dict[str, Tensor]:
    """The image VAE's tensors; where it has no quant convolutions (SD3, FLUX), identity 1x1 convolutions are added."""
    identities = {}
    for name, channels in (("quant_conv", 2 * latent_channels), ("post_quant_conv", latent_channels)):
        identities[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
        identities[f"{name}.bias"] = torch.zeros(channels)
    return {**identities, **image}
