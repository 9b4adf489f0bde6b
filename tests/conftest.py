"""What several test files share: small networks, clips, and the reference folder where it is there."""

import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from odvae import ODVAE

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden values and real clips; tests that use it skip where it is not there."""
    folder = Path(os.environ.get("ODVAE_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"needs the reference folder, which is not at {folder} (set ODVAE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def image_vae() -> AutoencoderKL:
    """A small Stable-Diffusion-like image VAE in which every tensor matters (no gain is 1, no bias 0)."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **SMALL
    ).eval()
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vae


@pytest.fixture(scope="session")
def vae(image_vae: AutoencoderKL) -> ODVAE:
    """A small OD-VAE whose temporal kernels are all at work: not a fresh tail initialisation."""
    torch.manual_seed(1)
    vae = ODVAE.from_image_vae(image_vae)
    for parameter in vae.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return vae.eval()


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())
