"""Adapters that give diffusers' video VAEs (Wan, CogVideoX, HunyuanVideo, LTX) the interface of ODVAE.

Each class has the name of the diffusers class that it extends, reads and writes the same model folders, and encodes and
decodes with the same results. The differences between these VAEs are handled here, so the stages treat all VAEs alike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import diffusers
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from odvae.architecture.frame_counts import video_frames
from odvae.architecture.input_checks import check_latent_values, check_latents, check_pixel_values, check_video
from odvae.video_vae import VideoVAEMixin, sample_latents


class VideoVAEAdapter(VideoVAEMixin, ModelMixin):
    """The common part of all adapters: their first base class, followed by the class from diffusers.

    Videos are float (b, 3, r*k + 1, h, w) in [-1, 1], latents (b, c, k + 1, h/s, w/s); r and s are the temporal and
    spatial compression ratios.
    """

    @apply_forward_hook
    def encode(self, video: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Same as ODVAE.encode, including its checks."""
        self._check_video(video)
        check_pixel_values(video)
        posterior = self._to_posterior(video)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self, latents: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple:
        """Same as ODVAE.decode, including its checks."""
        check_latents(latents, self.config.latent_channels)
        check_latent_values(latents)
        video = self._to_pixels(latents)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def reconstruct(
        self, video: Tensor, noise: Tensor | None = None, change_latents: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Same as ODVAE.reconstruct: it checks shapes, not values."""
        self._check_video(video)
        posterior = self._to_posterior(video)
        latents = sample_latents(posterior, noise, change_latents)
        return self._to_pixels(latents), posterior.mean, posterior.logvar

    def _check_video(self, video: Tensor) -> None:
        check_video(video, self.temporal_compression_ratio, self.spatial_compression_ratio)

    def _to_posterior(self, video: Tensor) -> DiagonalGaussianDistribution:
        return super().encode(video).latent_dist

    def _to_pixels(self, latents: Tensor) -> Tensor:
        return super().decode(latents).sample


# Wan stores the caches of its convolutions in the model itself, and encoding calls the VAE from several threads.
_WAN_LOCK = threading.RLock()


class AutoencoderKLWan(VideoVAEAdapter, diffusers.AutoencoderKLWan):
    """Wan 2.1 (4x8x8) and 2.2 (4x16x16). Processes one batch at a time, also with threads; clips pixels to [-1, 1]."""

    @property
    def config(self) -> FrozenDict:
        """The VAE's config, with `latent_channels` added, which Wan calls `z_dim`."""
        own = super().config
        return FrozenDict({**own, "latent_channels": own["z_dim"]})

    @property
    def temporal_compression_ratio(self) -> int:
        return self.config.scale_factor_temporal

    def _to_posterior(self, video: Tensor) -> DiagonalGaussianDistribution:
        with _WAN_LOCK:
            return super()._to_posterior(video)

    def _to_pixels(self, latents: Tensor) -> Tensor:
        with _WAN_LOCK:
            return super()._to_pixels(latents)


class AutoencoderKLCogVideoX(VideoVAEAdapter, diffusers.AutoencoderKLCogVideoX):
    """CogVideoX (4x8x8).

    It encodes 8 frames at a time and decodes 2 latent frames at a time, with norm statistics over those; it decodes the
    first latent frame to a single frame only if the number of latent frames is odd.
    """

    @property
    def temporal_compression_ratio(self) -> int:
        return int(self.config.temporal_compression_ratio)

    @property
    def spatial_compression_ratio(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    def _to_pixels(self, latents: Tensor) -> Tensor:
        """An even number of latent frames is padded with a copy of the last; the frames decoded from it are dropped."""
        count = latents.shape[2]
        if count % 2 == 0:
            latents = torch.cat([latents, latents[:, :, -1:]], dim=2)
        return super()._to_pixels(latents)[:, :, : video_frames(count, self.temporal_compression_ratio)]


class AutoencoderKLHunyuanVideo(VideoVAEAdapter, diffusers.AutoencoderKLHunyuanVideo):
    """HunyuanVideo (4x8x8). Clips of more than 17 frames are tiled in time with blending, as diffusers does by default;
    attention is causal within a tile."""


class AutoencoderKLLTXVideo(VideoVAEAdapter, diffusers.AutoencoderKLLTXVideo):
    """LTX (8x32x32).

    From version 0.9.1 on, the decoder takes a timestep and injects noise in its layers. Here the timestep is 0, the
    default of LTX's pipeline, and the noise has a fixed seed, so that the same latents give the same video.
    """

    def _to_pixels(self, latents: Tensor) -> Tensor:
        time = torch.zeros(len(latents)).to(latents) if self.config.timestep_conditioning else None
        if not any(self.config.decoder_inject_noise):
            return diffusers.AutoencoderKLLTXVideo.decode(self, latents, time).sample
        with torch.random.fork_rng([latents.device] if latents.device.type == "cuda" else []):
            torch.manual_seed(0)
            return diffusers.AutoencoderKLLTXVideo.decode(self, latents, time).sample
