"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """`bytes` is the growth of memory at its peak since the object was made: the device's, on CPU the process's.

    None where that cannot be measured (a CPU without Linux's /proc).
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
