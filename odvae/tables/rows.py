"""Rows of tables, and common code of all table formats: column names, empty cells, compressed files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from odvae.running.errors import InputError

# Whether these column names are those of a caption table.
KnowsColumns = Callable[[Sequence[str]], bool]

# What programs write for a missing value.
_EMPTY = {"", "nan", "NaN", "NAN", "-nan", "None", "null", "Null", "NULL", "<NA>", "NA", "N/A", "n/a", "#N/A", "#NA"}

# Maximum depth of nested objects in a row that are read.
_DEPTH = 3


def _open_zst(path: Path, _mode: str) -> BinaryIO:
    import pyarrow

    with pyarrow.input_stream(path, compression="zstd") as stream:
        return io.BytesIO(stream.read())


# Called with the columns of a table before any row is read.
NotesColumns = Callable[[Sequence[str]], object]

_COMPRESSED = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open, "zst": _open_zst}

# Exceptions of reading a broken compressed file.
COMPRESSION_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Row:
    """A row: its position ("line 7"), and its cells by column name (normalized by `column_name`)."""

    where: str
    cells: dict[str, Any]


def column_name(written: Any) -> str:
    """A column name in the form in which names are compared: "File Name " -> "file_name"."""
    return re.sub(r"[\s\-]+", "_", str(written).strip().strip("\ufeff").lower())


def named(row: Mapping[Any, Any], prefix: str = "", depth: int = _DEPTH) -> dict[str, Any]:
    """The entries of an object by column name, also those of nested objects ("meta.path")."""
    cells: dict[str, Any] = {}
    for key, cell in row.items():
        name = prefix + column_name(key)
        if is_empty(cells.get(name)):
            cells[name] = cell
    for name, cell in list(cells.items()):
        if isinstance(cell, dict) and depth:
            cells.update((below, value) for below, value in named(cell, f"{name}.", depth - 1).items())
    return cells


def check_columns(names: Sequence[str], where: str) -> None:
    """Raise InputError if two columns have the same normalized name."""
    if repeated := sorted({name for name in names if name and list(names).count(name) > 1}):
        raise InputError(f"{where}: duplicate column: {', '.join(repeated)}")


def is_empty(cell: Any) -> bool:
    """Whether a cell is empty: null, NaN, blanks, or a text that programs write for a missing value."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return isinstance(cell, str) and cell.strip() in _EMPTY


def is_compressed(extension: str) -> bool:
    """Whether an extension is that of a compressed file that is decompressed when it is read."""
    return extension.lower() in _COMPRESSED


def open_table(path: Path) -> BinaryIO:
    """Open a table for reading bytes; it is decompressed according to its extension."""
    opener = _COMPRESSED.get(path.suffix.lstrip(".").lower(), open)
    return opener(path, "rb")  # type: ignore[operator]
