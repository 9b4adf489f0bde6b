"""FLOPs and bytes of a step's operations, and the least time that a device needs for them (roofline)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from odvae.training.devices import Device


class Operation(NamedTuple):
    """What one operation takes: FLOPs (0 for all but products, convolutions and attention), bytes read and written, and
    whether its operands are of 16 bits."""

    flops: int
    bytes: int
    half: bool


class Costs:
    """Counts the operations of a step by what they take."""

    def __init__(self) -> None:
        self.operations: Counter[Operation] = Counter()

    def count(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Any) -> None:
        """Count one operation; views of its inputs cost nothing."""
        before = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        after = [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]
        if func.is_view or not after:
            return
        formula = flop_registry.get(func._overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=outputs)) if formula is not None else 0
        size = sum(x.numel() * x.element_size() for x in (*before, *after))
        operands = [x for x in before if x.is_floating_point()]
        half = bool(operands) and all(x.element_size() == 2 for x in operands)
        self.operations[Operation(flops, size, half)] += 1

    @property
    def flops(self) -> int:
        return sum(operation.flops * count for operation, count in self.operations.items())

    @property
    def bytes(self) -> int:
        return sum(operation.bytes * count for operation, count in self.operations.items())

    def least_seconds(self, device: Device) -> float:
        """Roofline of products, convolutions and attention: each takes the longer of its FLOPs at the device's peak and
        its bytes at its bandwidth. All other operations count as fused into them."""
        return sum(_seconds(op, device) * count for op, count in self.operations.items() if op.flops)

    def unfused_seconds(self, device: Device) -> float:
        """The same of all operations, one after the other, as they run without compilation."""
        return sum(_seconds(op, device) * count for op, count in self.operations.items())


def _seconds(operation: Operation, device: Device) -> float:
    peak = device.bf16_tflops if operation.half else device.tf32_tflops
    return max(operation.flops / (peak * 1e12), operation.bytes / (device.bandwidth_gb_s * 1e9))
