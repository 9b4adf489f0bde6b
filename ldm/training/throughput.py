"""FLOPs and tokens of a network in a micro-step of its training."""

from __future__ import annotations

import copy

import torch

from ldm.networks.network import Network, without_weights
from ldm.training.diffusion_batches import Batch
from odvae.measuring import count_flops


def forward_flops(network: Network, batch: Batch) -> int:
    """FLOPs of one forward pass: matrix products, convolutions and attention, as torch counts them.

    Nothing is computed: a copy of the network runs on meta tensors.
    """
    shapes = copy.deepcopy(network).to("meta")
    noisy, time_, condition = batch.noisy.to("meta"), batch.time.to("meta"), batch.condition.map(lambda x: x.to("meta"))
    with torch.no_grad():
        return count_flops(lambda: shapes(noisy, time_, condition))


class NetworkCost:
    """Model FLOPs and tokens of a micro-step, for a StepMeter; each shape of latents is counted once."""

    def __init__(self, network: Network) -> None:
        self.network: Network = without_weights(network)
        self._flops: dict[tuple[int, ...], int] = {}

    def __call__(self, batch: Batch) -> tuple[int, int]:
        shape = tuple(batch.noisy.shape)
        if shape not in self._flops:
            self._flops[shape] = 3 * forward_flops(self.network, batch)
        t, h, w = self.network.token_grid(batch.noisy)
        return self._flops[shape], shape[0] * t * h * w
