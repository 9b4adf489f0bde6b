"""Runs a step on fake tensors and records what it waits for, its memory and its costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError as DeviceMismatch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.planning.costs import Costs
from ldm.planning.host_syncs import HostSyncs, RehearsalError, on_gpu, pinned, place, project_frames
from ldm.planning.live_memory import LiveMemory

ATEN = torch.ops.aten


class StepRecorder(TorchDispatchMode):
    """Within it, every operation is recorded. Enter it inside `fake_device`.

    Raises RehearsalError, with file and line, for tensors on different devices, and for outputs whose shape depends on
    values.
    """

    def __init__(self, memory: LiveMemory) -> None:
        super().__init__()
        self.memory, self.costs, self.syncs = memory, Costs(), HostSyncs()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # asked by torch itself, for each tensor of each operation
            return func(*args)
        self.syncs.check(func, args, kwargs)
        if func is ATEN._pin_memory.default:
            return pinned(args[0])
        if func is ATEN._local_scalar_dense.default:
            return _any_value(args[0])
        if func is ATEN.nonzero.default and not on_gpu(args[0]):  # a scheduler looks its first timestep up
            return torch.zeros(1, args[0].ndim, dtype=torch.long)
        outputs = self._run(func, args, kwargs)
        self.costs.count(func, args, kwargs, outputs)
        self.memory.see(outputs)
        return outputs

    def _run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except DeviceMismatch as error:
            problem = str(error)
        except DynamicOutputShapeException:
            problem = "the output's shape depends on values, for which the CPU waits"
        raise RehearsalError(f"{place(list(project_frames()))}: {func}: {problem}")


def _any_value(tensor: torch.Tensor) -> bool | int | float:
    """A stand-in for a value that a step reads: one; of integers on the CPU, which are indices, the first."""
    if tensor.dtype == torch.bool:
        return on_gpu(tensor)
    return 1.0 if tensor.dtype.is_floating_point else int(on_gpu(tensor))
