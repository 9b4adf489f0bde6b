"""Reading of model folders of diffusers and transformers: configs are checked before a model is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odvae.running.errors import InputError
from odvae.running.files import read_object

# Larger than any number of layers, and than any other integer in a model's config (a vocabulary, a context length).
# A damaged one would have the library build layers until memory ends.
_MOST_LAYERS, _LARGEST = 1000, 10_000_000
_COUNTS = ("layer", "depth", "blocks")


def load_checked(kind: Any, name: str | Path, **where: str) -> Any:
    """`kind.from_pretrained(name)` of a class of diffusers, whose config's sizes are looked at before."""
    check_sizes(kind.load_config(name, **where), name)
    return kind.from_pretrained(name, **where)


def read_model_config(path: Path) -> dict[str, Any]:
    """A model's config.json. Raises InputError for one that is no object, or has sizes that no model has."""
    config = read_object(path)
    check_sizes(config, path)
    return config


def check_sizes(config: Mapping[str, Any], source: object, prefix: str = "") -> None:
    """Raise InputError for sizes that no model has."""
    for key, value in config.items():
        values = value if isinstance(value, list) else [value]
        most = _MOST_LAYERS if any(word in str(key) for word in _COUNTS) and "channels" not in str(key) else _LARGEST
        for one in values:
            if isinstance(one, Mapping):
                check_sizes(one, source, f"{prefix}{key}.")
            elif isinstance(one, int) and abs(one) > most:
                raise InputError(f"{source}: {prefix}{key} is {str(value)[:100]}, larger than any model's ({most})")
