"""Reading of tables of all formats, row by row (JSON at once): CSV and similar, JSON, JSON lines, Parquet, Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

from odvae.running.errors import InputError
from odvae.running.text import check_is_file
from odvae.tables.arrow_rows import arrow_rows
from odvae.tables.csv_rows import csv_rows
from odvae.tables.json_rows import json_rows
from odvae.tables.rows import COMPRESSION_ERRORS, KnowsColumns, NotesColumns, Row, is_compressed

_LINES = ("jsonl", "ndjson")
EXTENSIONS = ("csv", "tsv", "tab", "json", *_LINES, "parquet", "pq", "arrow", "feather")


def table_kind(path: PurePath) -> str | None:
    """The format of a table by its extension ("csv", also if compressed); None for any other file."""
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    if suffixes and is_compressed(suffixes[-1]):
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in EXTENSIONS else None


def read_table(path: Path, is_known: KnowsColumns, note_columns: NotesColumns = lambda _: None) -> Iterator[Row]:
    """Yield the rows of a table. `is_known` determines the delimiter of a CSV and the layout of a JSON object.

    `note_columns` is called with the columns before any row, if the format has them. Raises InputError, with the file
    and the line, if the file is not a valid table of its format.
    """
    kind = table_kind(path)
    check_is_file(path, "caption table")
    if kind is None:
        allowed = ", ".join(f".{extension}" for extension in EXTENSIONS)
        raise InputError(f"caption table {path}: allowed are {allowed}, also compressed as .gz, .bz2, .xz or .zst")
    try:
        if kind in ("csv", "tsv", "tab"):
            yield from csv_rows(path, is_known, note_columns)
        elif kind in ("json", *_LINES):
            yield from json_rows(path, is_known, may_be_lines=kind in _LINES)
        else:
            yield from arrow_rows(path, is_known, note_columns)
    except COMPRESSION_ERRORS as error:
        raise InputError(f"caption table {path} cannot be read: {error}") from None
    except MemoryError:
        raise InputError(f"caption table {path} cannot be read: it needs more memory than there is") from None
