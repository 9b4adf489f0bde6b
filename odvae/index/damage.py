"""What Arrow raises for a damaged index, as an error that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from odvae.running.errors import InputError


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Within it, what Arrow raises for a damaged file, errors of several types, becomes an InputError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path} is not an index of shards, or was damaged: {error}") from None
