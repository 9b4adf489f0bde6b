"""Measurements for benchmarks and logs: FLOPs, time and peak memory of a function, and the device's matmul rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from odvae.training.devices import known_device
from odvae.training.throughput import Peaks


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in `function`, two per multiplication.

    `function` may run on the meta device, where nothing is computed.
    """
    onednn = {torch.ops.aten.mkldnn_convolution: _onednn_flops}  # called directly by `odvae.architecture.layers.conv3d`
    with FlopCounterMode(display=False, custom_mapping=onednn) as counter:
        function()
    return counter.get_total_flops()


def _onednn_flops(x: list[int], weight: list[int], *_: object, out_shape: list[int], **__: object) -> int:
    return conv_flop_count(x, weight, out_shape)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of large square matrix products: the maximum of several measurements, in about a second."""
    best = 0.0
    for size in (2048, 8192) if device.type == "cuda" else (512, 1024):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(4):
            start = now(device)
            torch.mm(a, b)
            best = max(best, 2 * size**3 / (now(device) - start))
    return best


def peaks_of(device: torch.device, bf16: bool, published_tflops: float | None = None) -> Peaks:
    """The published peak of a device, as given or of the table of devices (bf16 only), and its measured rate."""
    published = published_tflops
    if published is None and bf16 and (known := known_device(device)) is not None:
        published = known.bf16_tflops
    measured = matmul_rate(device, torch.bfloat16 if bf16 else torch.float32)
    return Peaks(None if published is None else published * 1e12, measured)


def now(device: torch.device) -> float:
    """Time in seconds, after synchronizing the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forbid_tf32() -> None:
    """Let CUDA compute convolutions of fp32 tensors in fp32; by default torch rounds their inputs to TF32."""
    torch.backends.cudnn.allow_tf32 = False


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """`bytes` is the peak memory growth since the object was created, of the CUDA device or (on a CPU) of the process.

    None if it cannot be measured (a CPU without Linux's /proc).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
        else:
            self.before = _resident("VmRSS") if _reset_peak() else None

    @property
    def bytes(self) -> int | None:
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _resident("VmHWM") - self.before


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text("5")  # proc(5): resets the process's peak of resident memory
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
