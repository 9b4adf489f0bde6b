"""Exponential moving average (EMA) of a network's weights during training, also when sharded over ranks (FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class EMA:
    """Exponential moving average of a network's trained parameters, on the same device and sharded in the same way.

    It is not a copy of the network: an FSDP2 module cannot be copied, and this way a rank needs memory for its shards
    only.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.live = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self.values = {name: parameter.detach().clone() for name, parameter in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after step `step` (counted from 1).

        With warm-up: the decay is min(self.decay, 1 - step^(-2/3)), so that the first weights are soon forgotten.
        """
        decay = min(self.decay, 1 - step ** (-2 / 3))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.live.values()], weight=1 - decay)

    @contextlib.contextmanager
    def in_network(self) -> Iterator[None]:
        """Within it, the network is in eval mode with EMA weights; afterwards in train mode with its own weights."""
        self._swap()
        self.network.eval()
        try:
            yield
        finally:
            self._swap()
            self.network.train()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.live.items():
            own = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(own)

    def gather(self, keep: bool, copy: bool = False) -> dict[str, Tensor]:
        """The full average on the CPU; empty if not `keep`. All ranks must call it, since shards are exchanged.

        `copy`: in memory of its own, where the average itself is on the CPU.
        """
        full = {}
        for name, value in self.values.items():
            tensor = value.full_tensor() if isinstance(value, DTensor) else value
            if keep:
                full[name] = tensor.to("cpu", copy=copy).contiguous()
        return full

    def load(self, path: Path) -> None:
        """Load an average that was saved with any number of ranks."""
        with safe_open(path, framework="pt") as file:
            for name, value in self.values.items():
                value.copy_(_sharded_like(file.get_tensor(name), value))


def _sharded_like(full: Tensor, value: Tensor) -> Tensor:
    if not isinstance(value, DTensor):
        return full
    full = full.to(value.to_local().device)
    return distribute_tensor(full, value.device_mesh, value.placements, src_data_rank=None)
