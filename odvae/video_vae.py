"""What a video VAE is to the pipeline, and the one place that knows VAE classes by their names on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

import torch
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor

from odvae.running.commands import command_line
from odvae.running.errors import InputError
from odvae.running.files import read_json

if TYPE_CHECKING:  # what VideoVAEMixin is mixed into
    from diffusers import ModelMixin as _Mixed
else:
    _Mixed = object


@runtime_checkable
class VideoVAE(Protocol):
    """A torch module that turns video (b, 3, t, h, w) in [-1, 1] into latents (b, c, k + 1, h/s, w/s) and back.

    t = r*k + 1 with r its temporal, s its spatial compression ratio. The pipeline asks for no more than this, so any
    module with these members takes part (docs/your_own.md). Those after `__call__` come with diffusers' ModelMixin
    and ConfigMixin.
    """

    temporal_compression_ratio: int
    spatial_compression_ratio: int
    streamable: bool
    """Whether the streams equal the whole: no frame depends on a later one."""
    has_temporal_tiling: bool
    """Whether `enable_tiling(height, width, frames)` makes `encode` and `decode` work in groups of frames."""

    def encode(self, video: Tensor) -> AutoencoderKLOutput:
        """The posterior of a video's latents, as `.latent_dist` with `mean`, `std` and `logvar`.

        Raises InputError for sizes that the VAE does not take.
        """
        ...

    def decode(self, latents: Tensor) -> DecoderOutput:
        """The video of latents, as `.sample`; not clipped to [-1, 1]."""
        ...

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[DiagonalGaussianDistribution]:
        """`encode` of a video that comes in chunks along time; raises InputError where not `streamable`."""
        ...

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """`decode` of latents that come in chunks along time; raises InputError where not `streamable`."""
        ...

    def __call__(self, video: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction, latent mean, latent log-variance), of latents mean + std * noise; without noise the mean."""
        ...

    @property
    def config(self) -> Any:
        """What it was made with, by attribute or key: `latent_channels` at least; `latents_mean` and `latents_std`, per
        channel, once they were measured."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def to(self, *args: Any, **kwargs: Any) -> VideoVAE: ...

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def save_pretrained(self, save_directory: Path) -> None: ...


class VideoVAEMixin(_Mixed):
    """What a VAE needs beside `encode` and `decode`, where it has no streams and no groups of frames to tile in."""

    streamable = False
    has_temporal_tiling = False

    def forward(self, video: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction, latent mean, latent log-variance), as `VideoVAE.__call__`."""
        posterior = self.encode(video).latent_dist
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return self.decode(latents).sample, posterior.mean, posterior.logvar

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[DiagonalGaussianDistribution]:
        """Raises InputError."""
        self._refuse_stream("encode")

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Raises InputError."""
        self._refuse_stream("decode")

    def _refuse_stream(self, whole: str) -> NoReturn:
        raise InputError(f"{type(self).__name__} needs the whole clip and has no stream; use {whole}")


# What makes a VAE of random weights.
VAEFactory = Callable[[], VideoVAE]
# What reads a VAE from its folder, as `load_vae` does.
VAELoader = Callable[[Path], VideoVAE]


def compression_of(vae: VideoVAE) -> tuple[int, int]:
    """(temporal, spatial) compression ratio."""
    return vae.temporal_compression_ratio, vae.spatial_compression_ratio


def vae_classes() -> dict[str, Any]:
    """Every class that a VAE's folder may name in its config.json, by that name. Imported only when one is loaded."""
    from odvae import adapters
    from odvae.model import ODVAE
    from odvae.per_frame import PerFrameVAE

    return {
        "ODVAE": ODVAE,
        "PerFrameVAE": PerFrameVAE,
        "AutoencoderKL": PerFrameVAE,
        "AutoencoderKLWan": adapters.AutoencoderKLWan,
        "AutoencoderKLCogVideoX": adapters.AutoencoderKLCogVideoX,
        "AutoencoderKLHunyuanVideo": adapters.AutoencoderKLHunyuanVideo,
        "AutoencoderKLLTXVideo": adapters.AutoencoderKLLTXVideo,
    }


def load_vae(folder: Path) -> VideoVAE:
    """The VAE in `folder`, frozen and in eval mode: whichever of `vae_classes` its config.json names.

    Raises InputError that names the command which makes it, where there is none.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no trained VAE; make it with: {command_line('train_vae')}")
    kind = _class_named(read_json(folder / "config.json").get("_class_name"), folder / "config.json")
    return kind.from_pretrained(folder).eval().requires_grad_(False)


def load_pretrained_vae(name: str) -> VideoVAE:
    """As `load_vae`, from a folder or hub name, a VAE's own or a whole pipeline's, or a file of Open-Sora-Plan's."""
    from odvae.model import ODVAE

    if Path(name).is_file():
        return ODVAE.from_opensora_plan(name).requires_grad_(False)
    setting = f"vae.pretrained={name!r}"
    for where in ({}, {"subfolder": "vae"}):  # the second: as a pipeline's part
        with contextlib.suppress(OSError):
            config = ODVAE.load_config(name, **where)
            break
    else:
        raise InputError(f"{setting}: no config.json of a VAE can be read there, nor of a pipeline's part `vae`")
    try:
        vae = _class_named(config.get("_class_name"), setting).from_pretrained(name, **where)
    except OSError as error:
        raise InputError(f"{setting} cannot be loaded: {error}") from None
    return vae.eval().requires_grad_(False)


def _class_named(name: object, source: object) -> Any:
    if name == "FrameVAE":
        raise InputError(
            f"{source}: _class_name is 'FrameVAE', the name of version 0.1 for PerFrameVAE: write "
            '"PerFrameVAE" there, the weights are the same'
        )
    classes = vae_classes()
    if name not in classes:
        raise InputError(f"{source}: _class_name is {name!r}; allowed are {', '.join(classes)}")
    return classes[name]
