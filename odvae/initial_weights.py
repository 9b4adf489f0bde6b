"""What the VAE's training begins from: a network of random weights, a given image VAE, another OD-VAE."""

from __future__ import annotations

from pathlib import Path

from odvae.initialization import initialize_from_scratch
from odvae.model import ODVAE
from odvae.per_frame import PerFrameVAE
from odvae.running.errors import InputError
from odvae.settings import ModelSettings
from odvae.video_vae import VideoVAE


def make_image_vae(model: ModelSettings) -> PerFrameVAE:
    """Stable Diffusion's image VAE in the sizes of `model`, with random weights."""
    image_vae = PerFrameVAE(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_num_groups,
    )
    initialize_from_scratch(image_vae)
    return image_vae


def load_image_vae(name: str, model: ModelSettings) -> PerFrameVAE:
    """An AutoencoderKL from a folder or hub name, its own or a whole pipeline's; its sizes must be those of `model`."""
    try:
        try:
            image_vae = PerFrameVAE.from_pretrained(name)
        except OSError:  # no model there; a pipeline (Stable Diffusion's) has one in a folder of its own
            image_vae = PerFrameVAE.from_pretrained(name, subfolder="vae")
    except (OSError, ValueError) as error:
        raise InputError(f"vae.init_image_vae={name!r} cannot be loaded as an AutoencoderKL: {error}") from None
    _check_sizes(image_vae, model, f"the image VAE {name}")
    return image_vae


def load_video_vae(name: str, model: ModelSettings) -> ODVAE:
    """An OD-VAE with the weights of another, from a folder, hub name or published file, and the function of `model`."""
    path = Path(name)
    try:
        ours = (path / "config.json").is_file() or not path.exists()
        source = ODVAE.from_pretrained(name) if ours else ODVAE.from_opensora_plan(path)
    except (OSError, ValueError) as error:
        raise InputError(f"vae.init_from={name!r} cannot be loaded as an OD-VAE: {error}") from None
    _check_sizes(source, model, f"the OD-VAE {name}", "variant")
    if source.config.temporal_resampling != "joint":
        raise InputError(f"vae.init_from={name!r} resamples time in layers of its own (v1.1.0), which is not trained")
    vae = ODVAE(**model.model_dump())
    vae.load_state_dict(source.state_dict())
    return vae


def _check_sizes(vae: VideoVAE, model: ModelSettings, name: str, *more: str) -> None:
    for key in ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", *more):
        found, asked = vae.config[key], getattr(model, key)
        if (tuple(found) if isinstance(found, list) else found) != asked:
            raise InputError(f"vae.model.{key}={asked}, but {name} has {found}")
