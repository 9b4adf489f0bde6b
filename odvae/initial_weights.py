"""Initial weights of the VAE's training: random, from a pretrained image VAE, or from another OD-VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from odvae.architecture.inflation_mixin import RATES, image_halvings
from odvae.architecture.rates import Halvings, choose_growth, name_rate
from odvae.model import ODVAE
from odvae.per_frame import PerFrameVAE
from odvae.running.errors import InputError
from odvae.settings import ModelSettings
from odvae.storage.mirror import local_model
from odvae.video_vae import VideoVAE, read_vae_config
from odvae.weights.pretrained import load_model, loading


@torch.no_grad()
def initialize_from_scratch(vae: nn.Module) -> None:
    """Initialize a VAE (image or video) for fast training from scratch; in place.

    Convolutions preserve the variance of their input, each residual block starts as the identity, and the posterior
    starts narrow (standard deviation e^-3), so that the decoder receives a signal from the first step. With torch's
    default initialization a small VAE outputs gray images for hundreds of steps (measured in LOG.md).
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


def make_image_vae(model: ModelSettings) -> PerFrameVAE:
    """An image VAE of Stable Diffusion's architecture with the sizes in `model` and random weights."""
    levels = len(model.block_out_channels)
    image_vae = PerFrameVAE(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_num_groups,
    )
    initialize_from_scratch(image_vae)
    return image_vae


def load_image_vae(name: str, model: ModelSettings) -> PerFrameVAE:
    """Load an AutoencoderKL from a model folder, a pipeline folder, the hub name of either, or a single file.

    Raises InputError where there is none, where its sizes differ from those in `model`, and where a VAE with the rate
    in `model` cannot begin from it.
    """
    setting, name = f"vae.init_image_vae={name!r}", local_model(name)
    if Path(name).is_file():
        with loading(setting, name, "an AutoencoderKL"):
            image_vae = PerFrameVAE.from_ldm_checkpoint(name)
    else:
        config, where = read_vae_config(name, setting, "an AutoencoderKL")
        _check_class(config, ("AutoencoderKL", "PerFrameVAE", "FrameVAE"), setting)
        image_vae = load_model(PerFrameVAE, name, setting, "an AutoencoderKL", **where)
    _check_sizes(image_vae, model, f"the image VAE {name}")
    _check_growth(image_vae.config.block_out_channels, image_halvings(image_vae), model, f"the image VAE {name}")
    return image_vae


def load_video_vae(name: str, model: ModelSettings) -> ODVAE:
    """An OD-VAE with the weights of another one: folder, hub name or Open-Sora-Plan's file. `norm` and
    `temporal_upsample` are those of `model`, or where it has null those that the weights were trained with. Where
    `model` compresses more, the VAE is grown (`ODVAE.from_odvae`).

    Raises InputError where there is none, its sizes differ from those in `model`, it compresses more than `model`, or
    has separate temporal layers.
    """
    setting, name = f"vae.init_from={name!r}", local_model(name)
    path = Path(name)
    if any((path / name).is_file() for name in ("config.json", "vae/config.json")) or not path.exists():
        config, where = read_vae_config(name, setting, "an OD-VAE")
        _check_class(config, ("ODVAE",), setting)
        source = load_model(ODVAE, name, setting, "an OD-VAE", **where)
    else:
        with loading(setting, name, "an OD-VAE"):
            source = ODVAE.from_opensora_plan(path)
    _check_sizes(source, model, f"the OD-VAE {name}", "variant")
    if source.config.temporal_resampling != "joint":
        raise InputError(
            f"{setting} has separate layers that resample time (v1.1.0); training supports only v1.2.0's "
            "joint resampling"
        )
    _check_growth(source.config.block_out_channels, source.halvings, model, f"the OD-VAE {name}")
    before, after = (name_rate(halvings.ratios) for halvings in (source.halvings, model.halvings))
    if before != after and PartialState().is_main_process:
        print(f"vae.init_from={name} compresses {before}; it is grown to {after}, as in vae.model", flush=True)
    arguments = model.arguments(loaded=source.config)
    return ODVAE.from_odvae(source, **{key: arguments[key] for key in ("norm", "temporal_upsample", *RATES)})


def _check_class(config: Mapping[str, Any], allowed: Sequence[str], setting: str) -> None:
    if (found := config.get("_class_name")) not in allowed:
        raise InputError(f"{setting} is of the class {found} by its config.json; expected {' or '.join(allowed)}")


def _check_growth(widths: Sequence[int], source: Halvings, model: ModelSettings, name: str) -> None:
    """Raise InputError unless a VAE with these levels is, or can grow to, what `model` describes."""
    try:
        growth = choose_growth(widths, source, **{key: getattr(model, key) for key in RATES})
    except InputError as error:
        raise InputError(f"vae.model: {error} ({name})") from None
    if growth.block_out_channels != tuple(model.block_out_channels):
        rate = "" if not growth.outer else f", which at {name_rate(growth.halvings.ratios)} has new first levels:"
        raise InputError(
            f"vae.model.block_out_channels={list(model.block_out_channels)}, but {name} has {list(widths)}{rate} "
            f"{list(growth.block_out_channels) if growth.outer else ''}".rstrip()
        )


def _check_sizes(vae: VideoVAE, model: ModelSettings, name: str, *more: str) -> None:
    for key in ("layers_per_block", "latent_channels", "norm_num_groups", *more):
        found, expected = vae.config[key], getattr(model, key)
        if (tuple(found) if isinstance(found, list) else found) != expected:
            raise InputError(f"vae.model.{key}={expected}, but {name} has {found}")
