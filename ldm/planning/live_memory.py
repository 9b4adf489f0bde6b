"""Live bytes on the device during a step, by what they are for, and their peak."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

ACTIVATIONS, GRADIENTS, OPTIMIZER = "activations", "gradients", "optimizer"

# CUDA's allocator of torch rounds each tensor up to a multiple of this.
_BLOCK = 512


class LiveMemory:
    """Follows the storages of tensors on one kind of device from their creation to their end.

    What exists before a step is given to `hold` with its kind; everything else counts as activations, but for what is
    marked later: gradients, and the optimizer's state. `peak` is the largest total, `at_peak` its parts.
    """

    def __init__(self, device_type: str = "cuda") -> None:
        self.device_type = device_type
        self.live: Counter[str] = Counter()
        self.total, self.peak, self.at_peak = 0, 0, Counter[str]()
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
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, Counter(self.live)

    def restart(self) -> None:
        """Forget the peak."""
        self.peak, self.at_peak = self.total, Counter(self.live)

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
