"""How many devices there can be, and the sizes of text encoders by name: the facts in text_encoders.yaml."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from odvae.running.errors import InputError
from odvae.running.settings import Settings, read_yaml
from odvae.training.devices import FILE as DEVICES
from odvae.training.devices import Device, load_devices

TEXT_ENCODERS = Path(__file__).with_name("text_encoders.yaml")


class TextEncoderSize(Settings):
    """One published text encoder."""

    width: int = Field(ge=1)
    """Width of its embeddings."""
    parameters: int = Field(ge=1)
    """Parameters of the encoder."""


def load_text_encoders() -> dict[str, TextEncoderSize]:
    """The sizes in text_encoders.yaml, by hub name."""
    known = read_yaml(TEXT_ENCODERS.read_text(), TEXT_ENCODERS.name)
    return {name: TextEncoderSize(**facts) for name, facts in known.items()}


# More than any one training of this size was reported on: a mistyped count rather than a cluster.
MOST_DEVICES = 16384


def find_device(name: str, count: int) -> Device:
    """The device of this name. Raises InputError for one that is not in the table, and for a count that cannot be."""
    devices = load_devices()
    if name not in devices:
        raise InputError(f"--device {name} is not in {DEVICES.name}; there are {', '.join(devices)}")
    per_node = devices[name].most_per_node
    if not 1 <= count <= MOST_DEVICES or (count > per_node and count % per_node):
        raise InputError(
            f"--count {count}: 1 to {per_node}, or a multiple of {per_node} (whole machines) up to {MOST_DEVICES}"
        )
    return devices[name]
