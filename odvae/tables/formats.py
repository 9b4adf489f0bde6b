"""Tables of every kind, read row by row (a JSON file at once): CSV and its kin, JSON, JSON lines, Parquet, Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from odvae.running.errors import InputError
from odvae.running.text import check_is_file, decode_text, other_encoding
from odvae.tables.csv_rows import csv_rows
from odvae.tables.rows import PACKED_ERRORS, KnowsColumns, Row, column_name, is_packed, open_table

_LINES = ("jsonl", "ndjson")
EXTENSIONS = ("csv", "tsv", "tab", "json", *_LINES, "parquet", "pq", "arrow", "feather")

# A JSON table is read at once: beyond this it would not fit into memory, and .jsonl is the form for it.
_LARGEST_JSON = 4 << 30


def table_kind(path: PurePath) -> str | None:
    """The kind of a table by the end of its name ("csv", also under .gz, .bz2, .xz); None for what is no table."""
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    if suffixes and is_packed(suffixes[-1]):
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in EXTENSIONS else None


def read_table(path: Path, is_known: KnowsColumns) -> Iterator[Row]:
    """The rows of a table. From `is_known` follow a CSV's separator, and how a JSON object is to be taken.

    Raises InputError, which names the file and the line, where it is not what its name says.
    """
    kind = table_kind(path)
    check_is_file(path, "caption table")
    if kind is None:
        allowed = ", ".join(f".{extension}" for extension in EXTENSIONS)
        raise InputError(f"caption table {path}: allowed are {allowed}, also packed as .gz, .bz2 or .xz")
    try:
        if kind in ("csv", "tsv", "tab"):
            yield from csv_rows(path, is_known)
        elif kind in ("json", *_LINES):
            yield from _json_rows(path, is_known)
        else:
            yield from _arrow_rows(path)
    except PACKED_ERRORS as error:
        raise InputError(f"caption table {path} cannot be read: {error}") from None
    except MemoryError:
        raise InputError(f"caption table {path} cannot be read: it needs more memory than there is") from None


def _json_rows(path: Path, is_known: KnowsColumns) -> Iterator[Row]:
    """JSON lines, or one JSON text: which of the two it is, the text says, whatever its name."""
    with open_table(path) as file:
        beginning = file.read(1024)
    lines = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") and table_kind(path) in _LINES
    if lines:
        yield from _json_lines(path)
        return
    if path.stat().st_size > _LARGEST_JSON:
        raise InputError(f"{path} is larger than {_LARGEST_JSON >> 30} GiB: write it as .jsonl, an object a line")
    with open_table(path) as file:
        data = file.read()
    text = _marked(data, path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error) and "\n" in text.strip():  # lines under the name of .json
            yield from _json_lines(path)
            return
        raise InputError(f"{path} is not valid JSON: {error}") from None
    yield from _rows_in(value, is_known, path)


def _marked(data: bytes, path: Path) -> str:
    if other_encoding(data):
        decode_text(data, str(path))  # which says what it is
    return data.decode("utf-8-sig", errors="surrogateescape")


def _json_lines(path: Path) -> Iterator[Row]:
    with open_table(path) as file:
        for number, line in enumerate(file, start=1):
            text = _marked(line, path)
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number} is not valid JSON: {error}") from None
            if not isinstance(value, dict):
                raise InputError(f"{path}, line {number}: expected an object, found {type(value).__name__}")
            yield Row(f"line {number}", _named(value))


def _rows_in(value: Any, is_known: KnowsColumns, path: Path) -> Iterator[Row]:
    """The rows of a JSON value: a list of objects, one within an object, columns, or an object with a key a video."""
    if isinstance(value, list):
        for number, row in enumerate(value, start=1):
            yield Row(f"row {number}", _named(row) if isinstance(row, dict) else {})
        return
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a list of objects, found {type(value).__name__}")
    lists = [rows for rows in value.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    if known := [rows for rows in lists if is_known([column_name(key) for key in rows[0]])]:
        for rows in known:
            yield from _rows_in(rows, is_known, path)
        return
    if is_known([column_name(key) for key in value]):
        yield from _rows_of_columns(value)
        return
    for key, about in value.items():
        if isinstance(about, dict):
            yield Row(f"key {key!r}", {**_named(about), "file_name": key})
        elif isinstance(about, str | list) or about is None:
            yield Row(f"key {key!r}", {"file_name": key, "text": about})


def _rows_of_columns(value: dict) -> Iterator[Row]:
    """{"file_name": [...], "text": [...]}, or with objects for lists, as pandas writes them; or a single row."""
    columns = {
        column_name(key): list(cells.values()) if isinstance(cells, dict) else cells for key, cells in value.items()
    }
    lengths = {len(cells) if isinstance(cells, list) else None for cells in columns.values()}
    if len(lengths) == 1 and None not in lengths:
        for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
            yield Row(f"row {number}", dict(zip(columns, cells, strict=True)))
        return
    yield Row("the object", _named(value))


def _named(row: dict) -> dict[str, Any]:
    return {column_name(key): cell for key, cell in row.items()}


def _arrow_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        with open_table(path) as file:
            magic = file.read(8)
            file.seek(0)
            if magic.startswith(b"PAR1"):
                table = parquet.ParquetFile(file)
                batches = table.iter_batches(4096, columns=_light_columns(table.schema_arrow))
            elif magic.startswith(b"ARROW1"):
                opened = ipc.open_file(file)
                batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
            else:
                batches = iter(ipc.open_stream(file))
            number = 0
            for batch in batches:
                batch.validate(full=True)  # Arrow's columns are read in place: offsets that are wrong end the process
                names = [column_name(name) for name in batch.schema.names]
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield Row(f"row {number}", dict(zip(names, cells, strict=True)))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a {path.suffix.lstrip('.')} table: {error}") from None


def _light_columns(schema: Any) -> list[str]:
    """All columns but those of bytes, which may hold whole videos; of a video's structure, its path."""
    import pyarrow

    chosen = []
    for entry in schema:
        if pyarrow.types.is_struct(entry.type):
            chosen += [f"{entry.name}.{part.name}" for part in entry.type if not pyarrow.types.is_binary(part.type)]
        elif not (pyarrow.types.is_binary(entry.type) or pyarrow.types.is_large_binary(entry.type)):
            chosen.append(entry.name)
    return chosen
