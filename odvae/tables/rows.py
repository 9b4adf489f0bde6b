"""A row of a table, and what all kinds of tables have in common: columns' names, empty cells, packed files."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# Whether columns, by these names, are such as are looked for.
KnowsColumns = Callable[[Sequence[str]], bool]

_PACKED = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}

# What reading a packed file that is broken raises.
PACKED_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Row:
    """One row: where it is ("line 7"), and its cells by column, the column's name as `column_name` gives it."""

    where: str
    cells: dict[str, Any]


def column_name(written: Any) -> str:
    """A column's name in the one form in which they are compared: "File Name " is "file_name"."""
    return re.sub(r"[\s\-]+", "_", str(written).strip().strip("\ufeff").lower())


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, blanks, or the words that programs write for them."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return isinstance(cell, str) and cell.strip() in ("", "nan", "NaN", "None", "null", "NULL", "<NA>")


def is_packed(extension: str) -> bool:
    """Whether an extension is that of a packed file that is read as it is."""
    return extension.lower() in _PACKED


def open_table(path: Path) -> BinaryIO:
    """A table's bytes, unpacked where its name says that it is packed."""
    opener = _PACKED.get(path.suffix.lstrip(".").lower(), open)
    return opener(path, "rb")  # type: ignore[operator]
