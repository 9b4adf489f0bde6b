"""Small random video VAEs of diffusers' four classes, for tests."""

import torch

from odvae import adapters

WIDTHS = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
ADAPTED: dict[str, dict] = {
    "AutoencoderKLWan": {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1},
    "AutoencoderKLCogVideoX": WIDTHS,
    "AutoencoderKLHunyuanVideo": WIDTHS,
    "AutoencoderKLLTXVideo": {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
}


def make_adapted(name: str, **changes):
    """A VAE of this class in which every tensor matters."""
    torch.manual_seed(0)
    vae = getattr(adapters, name)(**{**ADAPTED[name], **changes}).eval().requires_grad_(False)
    for parameter in vae.parameters():
        if parameter.ndim <= 1 and parameter.numel() > 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vae
