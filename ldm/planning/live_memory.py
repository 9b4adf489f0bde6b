"""Live bytes on the device during a step, by what they are for, and their peak."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

ACTIVATIONS, GRADIENTS, OPTIMIZER = "activations", "gradients", "optimizer"

# CUDA's allocator of torch rounds each tensor up to a multiple of this.
_BLOCK = 512


@dataclass
class Peak:
    """The largest number of live bytes, and its parts by kind."""

    bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)


class LiveMemory:
    """Follows the storages of tensors on one kind of device from their creation to their end.

    What exists before a step is given to `hold` with its kind; everything else counts as activations, but for what is
    marked later: gradients, and the optimizer's state. `peak` is that of everything, `peak_besides` that of everything
    but gradients, `gradients` the most bytes of these.
    """

    def __init__(self, device_type: str = "cuda") -> None:
        self.device_type = device_type
        self.live: Counter[str] = Counter()
        self.total = 0
        self.peak, self.peak_besides, self.gradients = Peak(), Peak(), 0
        self._storages: dict[int, tuple[weakref.ref, int, str]] = {}

    def hold(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Count these tensors as `kind` from now on, also those that are known already."""
        for tensor in tensors:
            self._follow(tensor, kind, renamed=True)

    def see(self, outputs: Any) -> None:
        """Count the tensors that an operation returned, where they are new."""
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._follow(tensor, ACTIVATIONS)
        if self.total > self.peak.bytes:
            self.peak = Peak(self.total, dict(self.live))
        self.gradients = max(self.gradients, self.live[GRADIENTS])
        if (besides := self.total - self.live[GRADIENTS]) > self.peak_besides.bytes:
            self.peak_besides = self._besides(besides)

    def restart(self) -> None:
        """Forget the peaks."""
        self.peak = Peak(self.total, dict(self.live))
        self.peak_besides = self._besides(self.total - self.live[GRADIENTS])

    def _besides(self, bytes_: int) -> Peak:
        return Peak(bytes_, {kind: size for kind, size in self.live.items() if kind != GRADIENTS})

    def follows(self, tensor: Tensor) -> bool:
        """Whether the tensor's storage is counted already."""
        return id(tensor.untyped_storage()) in self._storages

    def _follow(self, tensor: Tensor, kind: str, renamed: bool = False) -> None:
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        known = self._storages.get(key)
        if known is not None:
            reference, size, before = known
            if renamed and before != kind:
                self._storages[key] = (reference, size, kind)
                self.live[before] -= size
                self.live[kind] += size
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._storages[key] = (weakref.ref(storage, lambda _: self._forget(key)), size, kind)
        self.live[kind] += size
        self.total += size

    def _forget(self, key: int) -> None:
        _, size, kind = self._storages.pop(key)
        self.live[kind] -= size
        self.total -= size


def tensors_of(state: Any) -> list[Tensor]:
    """The tensors in a nested structure."""
    return [value for value in tree_leaves(state) if isinstance(value, torch.Tensor)]
