"""Sizes in the configs of diffusers' and transformers' models: checked before a model is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from odvae.running.errors import InputError

# Larger than any number of layers, and than any other integer in a model's config (a vocabulary, a context length).
# A damaged one would have the library build layers until memory ends.
_MOST_LAYERS, _LARGEST = 1000, 10_000_000
_COUNTS = ("layer", "depth", "blocks")


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
