"""Protocol of video VAEs, and loading of a VAE of any supported class from its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

import torch
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor

from odvae.running.commands import with_config
from odvae.running.errors import InputError
from odvae.storage.mirror import errors_named, fetched, local_model, models
from odvae.weights.ldm_format import read_image_vae
from odvae.weights.pretrained import check_config, load_model, loading, read_config, write_again
from odvae.weights.weights_files import WEIGHTS

if TYPE_CHECKING:  # what VideoVAEMixin is mixed into
    from diffusers import ModelMixin as _Mixed
else:
    _Mixed = object


@runtime_checkable
class VideoVAE(Protocol):
    """A torch module that encodes videos (b, 3, t, h, w) in [-1, 1] as latents (b, c, k + 1, h/s, w/s), and decodes.

    t = r*k + 1; r and s are the temporal and spatial compression ratios. Any module with these members can be used in
    all stages (docs/your_own.md). diffusers' ModelMixin and ConfigMixin provide those after `__call__`.
    """

    temporal_compression_ratio: int
    spatial_compression_ratio: int
    streamable: bool
    """Whether streaming gives the same result as the whole clip: no frame depends on later ones."""
    has_temporal_tiling: bool
    """Whether `enable_tiling(height, width, frames)` and `disable_tiling()` switch temporal tiling on and off."""

    def encode(self, video: Tensor) -> AutoencoderKLOutput:
        """The posterior of a video's latents, as `.latent_dist` with `mean`, `std` and `logvar`.

        Raises InputError for sizes that the VAE does not accept.
        """
        ...

    def decode(self, latents: Tensor) -> DecoderOutput:
        """The decoded video, as `.sample`; not clipped to [-1, 1]."""
        ...

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[DiagonalGaussianDistribution]:
        """`encode` of a video that arrives in chunks along time. Raises InputError if not `streamable`."""
        ...

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """`decode` of latents that arrive in chunks along time. Raises InputError if not `streamable`."""
        ...

    def reconstruct(
        self, video: Tensor, noise: Tensor | None = None, change_latents: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction, latent mean, latent log-variance), for training.

        Decodes mean + std * noise, or without noise the mean. `change_latents`, which only some regularizers need
        (docs/regularizers.md), is applied before decoding.
        """
        ...

    @property
    def config(self) -> Any:
        """The arguments of its creation, by attribute or key: at least `latent_channels`; and, once measured,
        `latents_mean` and `latents_std` per channel."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def to(self, *args: Any, **kwargs: Any) -> VideoVAE: ...

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def save_pretrained(self, save_directory: Path) -> None: ...


def sample_latents(
    posterior: DiagonalGaussianDistribution, noise: Tensor | None, change: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """What `reconstruct` decodes: latents mean + std * noise (without `noise`: the mean), changed by `change`."""
    latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
    return latents if change is None else change(latents)


class VideoVAEMixin(_Mixed):
    """The members of `VideoVAE` besides `encode` and `decode`, for a VAE without streaming and temporal tiling.

    And `forward` with the arguments of diffusers' autoencoders.
    """

    streamable: bool = False
    has_temporal_tiling: bool = False

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode a video (b, 3, t, h, w): its reconstruction as `.sample`, or as a tuple of one.

        `sample_posterior`: decodes latents drawn with `generator` from the posterior, in place of its mean.
        """
        posterior = self.encode(sample).latent_dist
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        video = self.decode(latents).sample
        return DecoderOutput(sample=video) if return_dict else (video,)

    def reconstruct(
        self, video: Tensor, noise: Tensor | None = None, change_latents: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction, latent mean, latent log-variance), see `VideoVAE.reconstruct`."""
        posterior = self.encode(video).latent_dist
        latents = sample_latents(posterior, noise, change_latents)
        return self.decode(latents).sample, posterior.mean, posterior.logvar

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[DiagonalGaussianDistribution]:
        """Raises InputError: not streamable."""
        self._refuse_stream("encode")

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Raises InputError: not streamable."""
        self._refuse_stream("decode")

    def _refuse_stream(self, method: str) -> NoReturn:
        raise InputError(f"{type(self).__name__} needs the whole clip and cannot be streamed; use {method}")


# Creates a VAE with random weights.
VAEFactory = Callable[[], VideoVAE]
# Loads a VAE from its folder, like `load_vae`.
VAELoader = Callable[[Path], VideoVAE]


def compression_of(vae: VideoVAE) -> tuple[int, int]:
    """(temporal, spatial) compression ratio of a VAE."""
    return vae.temporal_compression_ratio, vae.spatial_compression_ratio


def vae_classes() -> dict[str, Any]:
    """The supported VAE classes, by their `_class_name` in config.json. Imported when a VAE is loaded."""
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
    """Load the VAE in `folder` (or at a URL), of the class that its config.json names; frozen and in eval mode.

    Raises InputError if there is none, with the command that trains one, and for an unknown class.
    """
    here = fetched(folder, models)
    with errors_named(here, folder):
        if not (here / "config.json").is_file():
            raise InputError(f"{here} contains no trained VAE; train one with: {with_config('train_vae')}")
        kind = _class_named(read_config(here).get("_class_name"), here / "config.json")
        remedy = write_again(here, "train_vae")
        return load_model(kind, here, str(here), "a VAE", remedy).eval().requires_grad_(False)


def load_pretrained_vae(name: str) -> VideoVAE:
    """Load a VAE like `load_vae`, from a folder or hub name of a VAE or pipeline, or from a file: of Open-Sora-Plan, or
    of an image VAE in the format of latent-diffusion.

    Raises InputError if there is none.
    """
    from odvae.model import ODVAE
    from odvae.per_frame import PerFrameVAE

    setting, name = f"vae.pretrained={name!r}", local_model(name)
    if Path(name).is_file():
        is_image_vae = Path(name).suffix in WEIGHTS and read_image_vae(name) is not None
        load = PerFrameVAE.from_ldm_checkpoint if is_image_vae else ODVAE.from_opensora_plan
        return load(name).requires_grad_(False)
    config, where = read_vae_config(name, setting)
    kind = _class_named(config.get("_class_name"), setting)
    return load_model(kind, name, setting, "a VAE", **where).eval().requires_grad_(False)


def read_vae_config(name: str, setting: str, what: str = "a VAE") -> tuple[dict[str, Any], dict[str, str]]:
    """The config of the VAE in a folder or of a hub name, its own or a pipeline's, and how `from_pretrained` finds the
    weights: `subfolder` of a pipeline's, and `variant` where a folder has only those of one (fp16).

    Raises InputError, with `setting` in front, where neither can be read.
    """
    from diffusers import AutoencoderKL  # any model's class reads any config

    path = Path(name)
    with loading(setting, name, what):
        try:
            return check_config(AutoencoderKL.load_config(name), setting), _stored_variant(path)
        except OSError:  # no model there; a pipeline (Stable Diffusion's) has one in a folder of its own
            if path.exists() and not (path / "vae").is_dir():
                raise
            part = {"subfolder": "vae"}
            return check_config(AutoencoderKL.load_config(name, **part), setting), part | _stored_variant(path / "vae")


def _stored_variant(folder: Path) -> dict[str, str]:
    """diffusers' `variant` for a folder whose only weights are of one (`diffusion_pytorch_model.fp16.safetensors`)."""
    names = {path.name for path in folder.glob("diffusion_pytorch_model*.safetensors")}
    variants = {name.split(".")[1] for name in names if name.count(".") == 2}
    return {"variant": variants.pop()} if len(names) == len(variants) == 1 else {}


def _class_named(name: object, source: object) -> Any:
    if name == "FrameVAE":
        raise InputError(
            f"{source}: _class_name is 'FrameVAE', which is PerFrameVAE since version 0.2; change it to "
            '"PerFrameVAE", the weights are the same'
        )
    classes = vae_classes()
    if not isinstance(name, str) or name not in classes:
        raise InputError(f"{source}: _class_name is {name!r}; allowed are {', '.join(classes)}")
    return classes[name]
