"""Per-frame video VAE: any image VAE (AutoencoderKL) applied frame by frame, the baseline of the paper's study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 (pipelines look it up in this module)
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor

from odvae.architecture.input_checks import check_latent_values, check_latents, check_pixel_values, check_video
from odvae.architecture.layers import ChannelsLastMixin, keep_channels_last
from odvae.running.errors import InputError
from odvae.video_vae import VideoVAEMixin, sample_latents
from odvae.weights.ldm_format import image_vae_config, read_image_vae, rename_image_vae
from odvae.weights.model_sizes import check_sizes
from odvae.weights.pretrained import loading


class PerFrameVAE(ChannelsLastMixin, VideoVAEMixin, AutoencoderKL):
    """diffusers' AutoencoderKL with the interface of ODVAE: video (b, 3, t, h, w) <-> latents (b, c, t, h/8, w/8).

    Any t >= 1. Time is not compressed, and streaming is exact, since frames are independent. Model folders are
    AutoencoderKL's: `PerFrameVAE.from_pretrained` loads every image VAE of that class, and AutoencoderKL can load what
    this class saves.
    """

    temporal_compression_ratio = 1
    streamable = True
    has_temporal_tiling = False

    @property
    def spatial_compression_ratio(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    @classmethod
    def from_ldm_checkpoint(cls, path: str | Path) -> PerFrameVAE:
        """Load an image VAE from a single file in the format of latent-diffusion (SD, SDXL, SD3, FLUX as published).

        The file may hold a whole pipeline. Raises InputError for a file that is missing, broken or contains Python
        objects, and for a tensor that is missing, unexpected or of another shape, with its name.
        """
        with loading(str(path), path, "an image VAE"):
            state = read_image_vae(path)
            if state is None:
                raise InputError(
                    f"{path} has no tensor encoder.mid.block_1.conv1.weight of an image VAE in the format of "
                    "latent-diffusion; of an AutoencoderKL of diffusers give the folder, with its config.json"
                )
            config = image_vae_config(state, path)
            check_sizes(config, path)
            with torch.device("meta"):
                vae = cls(**config)
            levels = len(config["block_out_channels"])
            vae.load_state_dict(rename_image_vae(state, vae.state_dict(), levels, path), assign=True)
        keep_channels_last(vae)
        return vae.eval()

    @apply_forward_hook
    def encode(self, video: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Same as ODVAE.encode, including its checks."""
        check_video(video, 1, self.spatial_compression_ratio)
        check_pixel_values(video)
        distribution = self._encode_frames(video)
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    @apply_forward_hook
    def decode(
        self, latents: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple:
        """Same as ODVAE.decode, including its checks."""
        check_latents(latents, self.config.latent_channels)
        check_latent_values(latents)
        video = self._decode_frames(latents)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def reconstruct(
        self, video: Tensor, noise: Tensor | None = None, change_latents: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Same as ODVAE.reconstruct: (reconstruction, latent mean, latent log-variance); checks shapes, not values."""
        check_video(video, 1, self.spatial_compression_ratio)
        posterior = self._encode_frames(video)
        latents = sample_latents(posterior, noise, change_latents)
        return self._decode_frames(latents), posterior.mean, posterior.logvar

    def _encode_frames(self, video: Tensor) -> DiagonalGaussianDistribution:
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        moments = super().encode(frames).latent_dist.parameters
        return DiagonalGaussianDistribution(rearrange(moments, "(b t) c h w -> b c t h w", b=len(video)))

    def _decode_frames(self, latents: Tensor) -> Tensor:
        frames = super().decode(rearrange(latents, "b c t h w -> (b t) c h w")).sample
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(latents))

    @apply_forward_hook
    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[DiagonalGaussianDistribution]:
        """Yields the posterior of each chunk (b, 3, t_i, h, w)."""
        for chunk in chunks:
            if chunk.shape[2]:
                yield self.encode(chunk, return_dict=False)[0]

    @apply_forward_hook
    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yields the video of each chunk of latents (b, c, t_i, h, w)."""
        for chunk in chunks:
            if chunk.shape[2]:
                yield self.decode(chunk, return_dict=False)[0]
