"""Accelerators and text encoders by name: the facts in devices.yaml."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from odvae.running.errors import InputError
from odvae.running.settings import Settings, load_settings

FILE = Path(__file__).with_name("devices.yaml")


class Device(Settings):
    """One accelerator."""

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


class TextEncoderSize(Settings):
    """One published text encoder."""

    width: int = Field(ge=1)
    """Width of its embeddings."""
    parameters: int = Field(ge=1)
    """Parameters of the encoder."""


class Facts(Settings):
    """The file's content."""

    devices: dict[str, Device]
    """Accelerators by name."""
    text_encoders: dict[str, TextEncoderSize]
    """Text encoders by their hub names."""


# More than any one training of this size was reported on: a mistyped count rather than a cluster.
MOST_DEVICES = 16384


def load_facts() -> Facts:
    """The facts in devices.yaml."""
    return load_settings(Facts, FILE)


def find_device(name: str, count: int) -> Device:
    """The device of this name. Raises InputError for one that is not in the table, and for a count that cannot be."""
    devices = load_facts().devices
    if name not in devices:
        raise InputError(f"--device {name} is not in {FILE.name}; there are {', '.join(devices)}")
    per_node = devices[name].most_per_node
    if not 1 <= count <= MOST_DEVICES or (count > per_node and count % per_node):
        raise InputError(
            f"--count {count}: 1 to {per_node}, or a multiple of {per_node} (whole machines) up to {MOST_DEVICES}"
        )
    return devices[name]
