"""How much a piece of work computes, and how fast the machine could."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of `work`: matrix products, convolutions and attention, two a multiplication.

    `work` may run on the meta device, where nothing is computed.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of large square matrix products: the best of several tries, in about a second."""
    best = 0.0
    for size in (2048, 8192) if device.type == "cuda" else (512, 1024):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(4):
            start = now(device)
            torch.mm(a, b)
            best = max(best, 2 * size**3 / (now(device) - start))
    return best


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forbid_tf32() -> None:
    """Have CUDA compute convolutions of fp32 tensors in fp32: torch's default rounds their factors to TF32."""
    torch.backends.cudnn.allow_tf32 = False
