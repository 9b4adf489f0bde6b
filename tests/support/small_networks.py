"""Small networks for tests, also with weights as after some training."""

import torch

from ldm.networks.dit import DiT
from ldm.networks.unet import UNet

CLASSES = ["run", "jump", "swim"]


def make_dit(**settings) -> DiT:
    torch.manual_seed(0)
    sizes = {"latent_channels": 4, "width": 32, "depth": 2, "heads": 2, "text_width": 8, "text_tokens": 6}
    return DiT(**{**sizes, "sample_size": (3, 4, 4), **settings}).eval()


def make_unet(**settings) -> UNet:
    torch.manual_seed(0)
    sizes = {"widths": (8, 16), "layers_per_level": 1, "head_width": 4, "norm_groups": 4, "text_width": 8}
    return UNet(**{**sizes, "latent_channels": 4, "sample_size": (3, 4, 4), **settings}).eval()


def awake(model):
    """With weights where training would have moved them from zero."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model
