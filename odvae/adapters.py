"""diffusers' own video VAEs behind ODVAE's interface: Wan, CogVideoX, HunyuanVideo, LTX.

Each class has the name of the one it is made from, reads and writes that one's folders, and encodes and decodes as it
does. What differs among them is handled here, so that the pipeline need not know which one it has.
"""

from __future__ import annotations

import threading

import diffusers
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from odvae.frame_counts import video_frames
from odvae.input_checks import check_latent_values, check_latents, check_pixel_values, check_video
from odvae.video_vae import VideoVAEMixin


class VideoVAEAdapter(VideoVAEMixin, ModelMixin):
    """What the adapters have in common; the first base of each, before the class of diffusers.

    Videos are float (b, 3, r*k + 1, h, w) in [-1, 1], latents (b, c, k + 1, h/s, w/s); r and s are of the config.
    """

    def encode(self, video: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """As ODVAE.encode, and with its checks."""
        self._check_video(video)
        check_pixel_values(video)
        posterior = self._to_posterior(video)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """As ODVAE.decode, and with its checks."""
        check_latents(latents, self.config.latent_channels)
        check_latent_values(latents)
        video = self._to_pixels(latents)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(self, video: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As ODVAE.forward: it checks the size, but reads no values."""
        self._check_video(video)
        posterior = self._to_posterior(video)
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return self._to_pixels(latents), posterior.mean, posterior.logvar

    def _check_video(self, video: Tensor) -> None:
        check_video(video, self.temporal_compression_ratio, self.spatial_compression_ratio)

    def _to_posterior(self, video: Tensor) -> DiagonalGaussianDistribution:
        return super().encode(video).latent_dist

    def _to_pixels(self, latents: Tensor) -> Tensor:
        return super().decode(latents).sample


# Wan keeps the frames that its convolutions remember in the model itself. Encoding uses several threads at once.
_WAN_WORKS = threading.RLock()


class AutoencoderKLWan(VideoVAEAdapter, diffusers.AutoencoderKLWan):
    """Wan 2.1 (4x8x8) and 2.2 (4x16x16). Works on one clip at a time, in whichever thread; clips pixels to [-1, 1]."""

    @property
    def config(self) -> FrozenDict:
        """Its own, in which `latent_channels` is what Wan calls `z_dim`."""
        own = super().config
        return FrozenDict({**own, "latent_channels": own["z_dim"]})

    @property
    def temporal_compression_ratio(self) -> int:
        return self.config.scale_factor_temporal

    def _to_posterior(self, video: Tensor) -> DiagonalGaussianDistribution:
        with _WAN_WORKS:
            return super()._to_posterior(video)

    def _to_pixels(self, latents: Tensor) -> Tensor:
        with _WAN_WORKS:
            return super()._to_pixels(latents)


class AutoencoderKLCogVideoX(VideoVAEAdapter, diffusers.AutoencoderKLCogVideoX):
    """CogVideoX (4x8x8).

    It normalizes over frames in batches of 8, latents in batches of 2, and takes the first latent frame for a single
    frame only where their number is odd.
    """

    @property
    def temporal_compression_ratio(self) -> int:
        return int(self.config.temporal_compression_ratio)

    @property
    def spatial_compression_ratio(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    def _to_pixels(self, latents: Tensor) -> Tensor:
        """An even number of latent frames is decoded with a copy of the last, whose frames are dropped."""
        count = latents.shape[2]
        if count % 2 == 0:
            latents = torch.cat([latents, latents[:, :, -1:]], dim=2)
        return super()._to_pixels(latents)[:, :, : video_frames(count, self.temporal_compression_ratio)]


class AutoencoderKLHunyuanVideo(VideoVAEAdapter, diffusers.AutoencoderKLHunyuanVideo):
    """HunyuanVideo (4x8x8). Longer clips than 17 frames go through it in blended groups, as diffusers does by default;
    its attention sees the frames of a group up to its own."""


class AutoencoderKLLTXVideo(VideoVAEAdapter, diffusers.AutoencoderKLLTXVideo):
    """LTX (8x32x32).

    From 0.9.1 on its decoder is told a noise level and adds noise in its layers. Here the level is 0, as LTX's pipeline
    has it by default, and the noise is the same every time, so that the same latents give the same video.
    """

    def _to_pixels(self, latents: Tensor) -> Tensor:
        time = torch.zeros(len(latents)).to(latents) if self.config.timestep_conditioning else None
        if not any(self.config.decoder_inject_noise):
            return diffusers.AutoencoderKLLTXVideo.decode(self, latents, time).sample
        with torch.random.fork_rng([latents.device] if latents.device.type == "cuda" else []):
            torch.manual_seed(0)
            return diffusers.AutoencoderKLLTXVideo.decode(self, latents, time).sample
