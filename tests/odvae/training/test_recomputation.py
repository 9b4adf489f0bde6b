"""Selective activation checkpointing: the same gradients, no convolution or product computed twice."""

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from ldm.networks.conditioning import Condition
from ldm.networks.dit import DiT
from ldm.networks.network import predict
from odvae import ODVAE
from odvae.per_frame import PerFrameVAE
from odvae.training.recomputation import enable_checkpointing
from odvae.training.settings import OptimizationSettings

SIZES = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


def odvae_loss():
    vae = ODVAE(**SIZES, temporal_compression_ratio=2, spatial_compression_ratio=2)
    return vae, lambda video: vae.reconstruct(video)[0].square().mean(), torch.randn(1, 3, 5, 32, 32)


def image_vae_loss():
    vae = PerFrameVAE(**SIZES, **BLOCKS)
    return vae, lambda video: vae.reconstruct(video)[0].square().mean(), torch.randn(2, 3, 1, 32, 32)


def dit_loss():
    dit = DiT(width=32, depth=2, heads=2, text_width=None)
    torch.nn.init.normal_(dit.final_linear.weight, std=0.1)
    for block in dit.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.1)
    return (
        dit,
        lambda z: predict(dit, z, torch.full((2,), 0.5), Condition()).square().mean(),
        torch.randn(2, 4, 3, 8, 8),
    )


def step(make, kind):
    """(gradients, FLOPs) of a step."""
    torch.manual_seed(0)
    network, loss, x = make()
    network.train()
    enable_checkpointing(network, kind)
    with FlopCounterMode(display=False) as flops:
        loss(x).backward()
    return [parameter.grad for parameter in network.parameters()], flops.get_total_flops()


@pytest.mark.parametrize("make", [odvae_loss, image_vae_loss, dit_loss])
def test_gradients_are_the_same_and_nothing_dear_is_computed_twice(make):
    plain, flops = step(make, False)
    selective, same_flops = step(make, "selective")
    _, more_flops = step(make, True)
    assert all(torch.equal(a, b) for a, b in zip(plain, selective, strict=True))
    assert same_flops == flops < more_flops


def test_compiled_blocks_are_not_recomputed_selectively():
    with pytest.raises(ValidationError, match="with compile=true torch recomputes what is cheap by itself"):
        OptimizationSettings(compile=True, gradient_checkpointing="selective")
