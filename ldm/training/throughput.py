"""Training throughput: tokens and model FLOPs per second, MFU, and the share of time spent waiting for data."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator

import torch
from torch import nn

from ldm.networks.network import Network
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


class StepMeter:
    """Throughput of the steps between two logged rows.

    It does not synchronize with the device: the loss is read before a row is logged, so all earlier work is done by
    then. FLOPs are counted as three forward passes per step (the backward pass costs two); the second forward pass of
    gradient checkpointing is not counted.
    """

    def __init__(self, network: Network, ranks: int, peak_flops: float) -> None:
        self.network, self.ranks, self.peak_flops = _without_weights(network), ranks, peak_flops
        self._flops_by_shape: dict[tuple[int, ...], int] = {}
        self._restart()

    def _restart(self) -> None:
        self.begin, self.waited, self.tokens, self.flops = time.perf_counter(), 0.0, 0, 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def count(self, batch: Batch) -> None:
        """Count one micro-step on this batch; the other ranks are assumed to have done the same."""
        shape = tuple(batch.noisy.shape)
        if shape not in self._flops_by_shape:
            self._flops_by_shape[shape] = 3 * forward_flops(self.network, batch)
        t, h, w = self.network.token_grid(batch.noisy)
        self.tokens += shape[0] * t * h * w
        self.flops += self._flops_by_shape[shape]

    def row(self) -> dict[str, float]:
        """The rates since the last row; starts the next interval."""
        seconds = time.perf_counter() - self.begin
        rates = {
            "tokens_per_second": self.ranks * self.tokens / seconds,
            "model_tflops": self.flops / seconds / 1e12,  # per rank
            "mfu": self.flops / seconds / self.peak_flops,
            "data_wait_share": self.waited / seconds,
        }
        self._restart()
        return rates


def _without_weights(network: nn.Module) -> Network:
    with torch.device("meta"):
        return type(network)(**{k: v for k, v in network.config.items() if not k.startswith("_")})
