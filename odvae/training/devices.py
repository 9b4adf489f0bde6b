"""Accelerators and their published peaks by name: the facts in devices.yaml."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field

from odvae.running.settings import Settings, read_yaml

FILE = Path(__file__).with_name("devices.yaml")


class Device(Settings):
    """One accelerator."""

    names: tuple[str, ...] = ()
    """What its driver calls it, of every variant that has these numbers."""
    memory_gb: float = Field(gt=0)
    """Memory, 1e9 bytes."""
    bf16_tflops: float = Field(gt=0)
    """Peak of dense bf16 products with sums in fp32, TFLOP/s."""
    tf32_tflops: float = Field(gt=0)
    """The same of TF32, in which torch computes fp32 convolutions."""
    bandwidth_gb_s: float = Field(gt=0)
    """Bandwidth of its memory, 1e9 bytes a second."""
    most_per_node: int = Field(8, ge=1)
    """How many a machine has."""
    source: str
    """Where the numbers are from."""

    @property
    def bytes(self) -> float:
        return self.memory_gb * 1e9


def load_devices() -> dict[str, Device]:
    """The accelerators in devices.yaml, by name."""
    return {name: Device(**facts) for name, facts in read_yaml(FILE.read_text(), FILE.name).items()}


def known_device(device: torch.device) -> Device | None:
    """The entry of this GPU, by the name that its driver gives it; None for others and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((known for known in load_devices().values() if name in known.names), None)
