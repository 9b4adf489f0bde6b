"""Any image VAE as a video VAE: frame by frame, no compression of time. The baseline of the paper's study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from einops import rearrange
from torch import Tensor, nn

from odvae.shared.errors import InputError


class FrameVAE(nn.Module):
    """A diffusers AutoencoderKL behind ODVAE's interface: video (b, 3, t, h, w) <-> latents (b, c, t, h/8, w/8).

    Any t >= 1; h and w multiples of the image VAE's factor. Streams are exact, since frames do not see each other.
    """

    def __init__(self, image_vae: AutoencoderKL) -> None:
        super().__init__()
        self.image_vae = image_vae
        self.config = image_vae.config

    def encode(self, video: Tensor) -> AutoencoderKLOutput:
        if video.ndim != 5 or video.shape[1] != 3:
            raise InputError(f"a video is (batch, 3, frames, height, width), found {tuple(video.shape)}")
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        moments = self.image_vae.encode(frames).latent_dist.parameters
        moments = rearrange(moments, "(b t) c h w -> b c t h w", b=len(video))
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, latents: Tensor) -> DecoderOutput:
        frames = self.image_vae.decode(rearrange(latents, "b c t h w -> (b t) c h w")).sample
        return DecoderOutput(sample=rearrange(frames, "(b t) c h w -> b c t h w", b=len(latents)))

    def forward(self, video: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As ODVAE.forward: (reconstruction, latent mean, latent log-variance)."""
        posterior = self.encode(video).latent_dist
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return self.decode(latents).sample, posterior.mean, posterior.logvar

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[DiagonalGaussianDistribution]:
        for chunk in chunks:
            yield self.encode(chunk).latent_dist

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        for chunk in chunks:
            yield self.decode(chunk).sample

    def save_pretrained(self, folder: str) -> None:
        """Save the image VAE itself, as diffusers does."""
        self.image_vae.save_pretrained(folder)
