"""Checks of the sizes in configs of diffusers' and transformers' models, before a model is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from odvae.running.errors import InputError

# Upper limits of numbers of layers, and of all other integers in a model's config (vocabulary size, context length).
# With a damaged value, the library would create layers until memory is exhausted.
_MOST_LAYERS, _LARGEST = 1000, 10_000_000
_COUNTS = ("layer", "depth", "blocks")


def check_sizes(config: Mapping[str, Any], source: object, prefix: str = "") -> None:
    """Raise InputError for implausible sizes."""
    for key, value in config.items():
        values = value if isinstance(value, list) else [value]
        most = _MOST_LAYERS if any(word in str(key) for word in _COUNTS) and "channels" not in str(key) else _LARGEST
        for one in values:
            if isinstance(one, Mapping):
                check_sizes(one, source, f"{prefix}{key}.")
            elif isinstance(one, int) and abs(one) > most:
                raise InputError(f"{source}: {prefix}{key} is {str(value)[:100]}, larger than any model's ({most})")
