"""Decoding of latents a few latent frames at a time: videos of any length in constant memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from odvae.video_vae import VideoVAE

PIECE = 4  # latent frames decoded at a time


@torch.no_grad()
def decode_in_pieces(vae: VideoVAE, latents: Tensor, mean: list[float], std: list[float]) -> Iterator[Tensor]:
    """Normalized latents (b, c, k, h, w) -> pieces (b, 3, t_j, H, W) of the video in order, float32 in [-1, 1].

    The pieces are always the same, so equal latents give equal bits. A VAE that needs the whole clip gives one piece.
    """
    mean, std = (torch.tensor(x, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1) for x in (mean, std))
    latents = (latents * std + mean).to(vae.dtype)
    pieces = vae.decode_stream(latents.split(PIECE, dim=2)) if vae.streamable else iter([vae.decode(latents).sample])
    for piece in pieces:
        yield piece.float().clamp(-1, 1)
