"""Small VAEs of several compression rates."""

import torch
from diffusers import AutoencoderKL
from small import SMALL
from torch import Tensor

from odvae import ODVAE

WIDTHS = {4: (8, 8, 16), 8: (8, 8, 16, 16), 16: (8, 8, 16, 16, 16), 32: (8, 8, 8, 16, 16, 16)}
RATES = [(1, 8), (2, 8), (4, 8), (8, 8), (1, 4), (4, 4), (8, 4), (4, 16), (8, 16), (4, 32)]


def make_vae(ratios: tuple[int, int], variant: int = 4, **settings) -> ODVAE:
    """A small VAE of these (temporal, spatial) ratios with random weights, in which every tensor matters."""
    torch.manual_seed(0)
    widths = (8, 8, 8, 16) if ratios == (8, 4) else WIDTHS[ratios[1]]
    sizes = {**SMALL, "block_out_channels": widths}
    vae = ODVAE(
        **sizes, variant=variant, temporal_compression_ratio=ratios[0], spatial_compression_ratio=ratios[1], **settings
    )
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vae.eval()


def make_image_vae(widths: tuple[int, ...], **settings) -> AutoencoderKL:
    torch.manual_seed(1)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    vae = AutoencoderKL(**{**SMALL, **blocks, "block_out_channels": widths, **settings})
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vae.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))
