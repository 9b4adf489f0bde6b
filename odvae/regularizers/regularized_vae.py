"""A VAE in training whose latents are changed between encoding and decoding, and the changes of each step."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odvae.clips.settings import DataSettings
from odvae.regularizers.equivariance import Transformation, check_smallest_clip, draw_transformation
from odvae.regularizers.latent_masking import draw_mask, masked_fraction
from odvae.regularizers.settings import RegularizerSettings
from odvae.running.errors import InputError
from odvae.vae_batches import Batch
from odvae.video_vae import VideoVAE


class RegularizedVAE(nn.Module):
    """What is trained in place of a VAE whose latents are changed: the VAE, and the vector that masked latents become.

    The vector is part of training's checkpoints, and not of the VAE that is saved in the end.
    """

    def __init__(self, vae: nn.Module, masking: bool) -> None:
        super().__init__()
        self.vae = vae
        # A vector, not (c, 1, 1, 1): without weight decay, and no matrix for optimizers that treat those differently.
        self.mask_vector = nn.Parameter(torch.zeros(vae.config.latent_channels)) if masking else None

    def forward(
        self, video: Tensor, noise: Tensor, transformation: Transformation | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The VAE's `reconstruct`, of latents that are transformed, then the vector where `mask` is True."""

        def change(latents: Tensor) -> Tensor:
            if transformation is not None:
                latents = transformation(latents)
            if mask is not None:
                assert self.mask_vector is not None
                latents = torch.where(mask, self.mask_vector.view(-1, 1, 1, 1).to(latents.dtype), latents)
            return latents

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

    @property
    def changes_latents(self) -> bool:
        return self.settings.latent_masking is not None or self.settings.equivariance is not None

    def trained_module(self, data: DataSettings, has_lpips: bool) -> nn.Module:
        """The module to train on clips of the size in `data`: the VAE itself, or a RegularizedVAE around it.

        Raises InputError for a VAE that does not let its latents be changed, and for clips that would be scaled to
        frames smaller than LPIPS takes.
        """
        network: nn.Module = self.vae
        if self.settings.equivariance is not None and has_lpips:
            ratio = self.vae.spatial_compression_ratio
            check_smallest_clip(self.settings.equivariance.min_scale, data.height, data.width, ratio)
        if not self.changes_latents:
            return network
        if "change_latents" not in inspect.signature(network.reconstruct).parameters:
            raise InputError(
                "vae.regularizers.latent_masking and vae.regularizers.equivariance change latents before they are "
                f"decoded: {type(network).__name__}.reconstruct must have an argument change_latents, as in "
                "odvae.video_vae.VideoVAE"
            )
        return RegularizedVAE(network, masking=self.settings.latent_masking is not None)

    def draw(self, batch: Batch, step: int) -> tuple[Any, ...]:
        """The video to compare the reconstruction with, and further arguments of the trained module's `forward`, in a
        micro-step of step `step`."""
        if not self.changes_latents:
            return (batch.video,)
        target, grid, transformation = batch.video, batch.latent_shape(self.vae)[1:], None
        if self.settings.equivariance is not None:
            transformation = draw_transformation(self.settings.equivariance, grid, self.seed, self.name, step)
        if transformation is not None:
            target, grid = transformation(target, self.vae.spatial_compression_ratio), transformation.grid(grid[0])
        return target, transformation, self._draw_mask(batch, grid, step)

    def _draw_mask(self, batch: Batch, grid: Sequence[int], step: int) -> Tensor | None:
        masking = self.settings.latent_masking
        if masking is None:
            return None
        fraction, name = masked_fraction(masking, self.seed, self.name, step), f"mask of {batch.noise_name}"
        return draw_mask(grid, fraction, masking.block, self.seed, name, batch.sample_numbers, batch.video.device)
