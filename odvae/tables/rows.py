"""A row of a table, and what all kinds of tables have in common: columns' names, empty cells, compressed files."""

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

# Whether columns, by these names, are such as are looked for.
KnowsColumns = Callable[[Sequence[str]], bool]

# The words that programs write where there is nothing.
_EMPTY = {"", "nan", "NaN", "NAN", "-nan", "None", "null", "Null", "NULL", "<NA>", "NA", "N/A", "n/a", "#N/A", "#NA"}

# Objects within objects within a row are looked into so deep.
_DEPTH = 3


def _open_zst(path: Path, _mode: str) -> BinaryIO:
    import pyarrow

    with pyarrow.input_stream(path, compression="zstd") as stream:
        return io.BytesIO(stream.read())


# Is given the columns of a table as soon as they are known, before any row.
NotesColumns = Callable[[Sequence[str]], object]

_PACKED = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open, "zst": _open_zst}

# What reading a compressed file that is broken raises.
PACKED_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Row:
    """One row: where it is ("line 7"), and its cells by column, the column's name as `column_name` gives it."""

    where: str
    cells: dict[str, Any]


def column_name(written: Any) -> str:
    """A column's name in the one form in which they are compared: "File Name " is "file_name"."""
    return re.sub(r"[\s\-]+", "_", str(written).strip().strip("\ufeff").lower())


def named(row: Mapping[Any, Any], prefix: str = "", depth: int = _DEPTH) -> dict[str, Any]:
    """An object's entries by their columns' names, also those of objects within it ("meta.path")."""
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
    """Raise InputError where two columns have the same name, in the form in which names are compared."""
    if repeated := sorted({name for name in names if name and list(names).count(name) > 1}):
        raise InputError(f"{where}: column there twice: {', '.join(repeated)}")


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, blanks, or the words that programs write for them."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return isinstance(cell, str) and cell.strip() in _EMPTY


def is_packed(extension: str) -> bool:
    """Whether an extension is that of a compressed file that is read as it is."""
    return extension.lower() in _PACKED


def open_table(path: Path) -> BinaryIO:
    """A table's bytes, decompressed where its name says that it is compressed."""
    opener = _PACKED.get(path.suffix.lstrip(".").lower(), open)
    return opener(path, "rb")  # type: ignore[operator]
