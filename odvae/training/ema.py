"""Averaged (EMA) weights of a network in training, whole or sharded over ranks (FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class EMA:
    """An exponential moving average of a network's parameters, kept where they are and sharded as they are.

    Not a second network: FSDP2's cannot be copied, and the average of the shards costs each rank only its share.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.live = dict(network.named_parameters())
        self.values = {name: parameter.detach().clone() for name, parameter in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (from 1); the decay warms up as 1 - step^(-2/3) from 0.

        So early steps do not linger.
        """
        decay = min(self.decay, 1 - step ** (-2 / 3))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.live.values()], weight=1 - decay)

    @contextlib.contextmanager
    def in_network(self) -> Iterator[None]:
        """Within it, the network evaluates with the averaged weights; afterwards it trains with its own again."""
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

    def gather(self, keep: bool) -> dict[str, Tensor]:
        """The whole average on the CPU; empty where not `keep`. All ranks must call it: shards are exchanged."""
        whole = {}
        for name, value in self.values.items():
            tensor = value.full_tensor() if isinstance(value, DTensor) else value
            if keep:
                whole[name] = tensor.cpu().contiguous()
        return whole

    def save(self, path: Path, is_main: bool) -> None:
        """Write the whole average as safetensors; all ranks call it, the main process writes."""
        whole = self.gather(keep=is_main)
        if is_main:
            save_file(whole, path)

    def load(self, path: Path) -> None:
        """Read an average that any number of ranks saved."""
        with safe_open(path, framework="pt") as file:
            for name, value in self.values.items():
                value.copy_(_sharded_like(file.get_tensor(name), value))


def _sharded_like(whole: Tensor, value: Tensor) -> Tensor:
    if not isinstance(value, DTensor):
        return whole
    whole = whole.to(value.to_local().device)
    return distribute_tensor(whole, value.device_mesh, value.placements, src_data_rank=None)
