"""A VAE in training whose latents are changed between encoding and decoding, and the changes of each step."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odvae.regularizers.latent_masking import draw_mask, masked_fraction
from odvae.regularizers.settings import RegularizerSettings
from odvae.running.errors import InputError
from odvae.vae_batches import Batch
from odvae.video_vae import VideoVAE


class RegularizedVAE(nn.Module):
    """What is trained in place of a VAE whose latents are masked: the VAE, and the vector of masked positions.

    The vector is part of training's checkpoints, and not of the VAE that is saved in the end.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        # A vector, not (c, 1, 1, 1): without weight decay, and no matrix for optimizers that treat those differently.
        self.mask_vector = nn.Parameter(torch.zeros(vae.config.latent_channels))

    def forward(self, video: Tensor, noise: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The VAE's `reconstruct`, with the vector in place of latents where `mask` (b, 1, t, h, w) is True."""

        def change(latents: Tensor) -> Tensor:
            vector = self.mask_vector.view(-1, 1, 1, 1).to(latents.dtype)
            return torch.where(mask, vector, latents)

        return self.vae.reconstruct(video, noise, change)


@dataclass(frozen=True)
class LatentChanges:
    """Draws how the latents of each micro-step are changed, by the settings, as a function of (seed, step).

    `name` is the phase of the training.
    """

    settings: RegularizerSettings
    vae: VideoVAE
    seed: int
    name: str

    def trained_module(self) -> nn.Module:
        """The module to train: the VAE itself, or a RegularizedVAE around it.

        Raises InputError for a VAE that does not let its latents be changed.
        """
        network: nn.Module = self.vae
        if self.settings.latent_masking is None:
            return network
        if "change_latents" not in inspect.signature(network.reconstruct).parameters:
            raise InputError(
                "vae.regularizers.latent_masking changes latents before they are decoded: "
                f"{type(network).__name__}.reconstruct must have an argument change_latents, as in "
                "odvae.video_vae.VideoVAE"
            )
        return RegularizedVAE(network)

    def draw(self, batch: Batch, step: int) -> tuple[Tensor, ...]:
        """Further arguments of the trained module's `forward` in a micro-step of step `step`."""
        masking = self.settings.latent_masking
        if masking is None:
            return ()
        fraction = masked_fraction(masking, self.seed, self.name, step)
        grid = batch.latent_shape(self.vae)[1:]
        name = f"mask of {batch.noise_name}"
        return (draw_mask(grid, fraction, masking.block, self.seed, name, batch.sample_numbers, batch.video.device),)
