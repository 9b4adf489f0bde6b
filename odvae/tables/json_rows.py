"""Rows of JSON tables: one object per line, a list of objects, columns, or an object with one key per video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odvae.running.errors import InputError
from odvae.running.text import decode_text, other_encoding
from odvae.tables.rows import KnowsColumns, Row, column_name, named, open_table

# Maximum size of a JSON table, which is read into memory at once; larger ones must be .jsonl.
_LARGEST_JSON = 4 << 30

# Maximum depth of nested objects in which rows are searched.
_DEPTH = 6

# COCO's layout: a list of files with ids, and a list of captions that refer to the ids.
_REFERENCES = {"images": "image_id", "videos": "video_id"}


def json_rows(path: Path, is_known: KnowsColumns, may_be_lines: bool) -> Iterator[Row]:
    """Rows of JSON lines or of one JSON value; which one it is, is decided by the content, not by the file name."""
    with open_table(path) as file:
        beginning = file.read(1024)
    if may_be_lines and beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        yield from _json_lines(path)
        return
    if path.stat().st_size > _LARGEST_JSON:
        raise InputError(f"{path} is larger than {_LARGEST_JSON >> 30} GiB: write it as .jsonl, one object per line")
    with open_table(path) as file:
        text = _text(file.read(), path)
    if not text.strip():
        return
    try:
        value = _parse(text)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error) and "\n" in text.strip():  # JSON lines in a file named .json
            yield from _json_lines(path)
            return
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, list | dict):
        raise InputError(f"{path}: expected a list of objects, found {type(value).__name__}")
    yield from _rows_in(value, is_known, _DEPTH)


def _text(data: bytes, path: Path) -> str:
    if other_encoding(data):
        decode_text(data, str(path))  # raises InputError with the encoding
    return data.decode("utf-8-sig", errors="surrogateescape")


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict from an object's pairs. JSON allows duplicate keys, of which all but one would be lost: an error here."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r} in one object")
    return found


def _json_lines(path: Path) -> Iterator[Row]:
    with open_table(path) as file:
        for number, line in enumerate(file, start=1):
            text = _text(line, path)
            if not text.strip():
                continue
            try:
                value = _parse(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number} is not valid JSON: {error}") from None
            if not isinstance(value, dict):
                raise InputError(f"{path}, line {number}: expected an object, found {type(value).__name__}")
            yield Row(f"line {number}", named(value))


def _rows_in(value: list | dict, is_known: KnowsColumns, depth: int) -> Iterator[Row]:
    """Rows of a JSON value: a list of objects, lists in an object, columns, or an object with one key per video."""
    if isinstance(value, list):
        for number, row in enumerate(value, start=1):
            yield Row(f"row {number}", named(row) if isinstance(row, dict) else {})
        return
    lists = [rows for rows in _with_files(value).values() if is_known(_columns_of(rows))]
    if lists:
        for rows in lists:
            yield from _rows_in(rows, is_known, depth)
    elif is_known([column_name(key) for key in value]):
        yield from _rows_of_columns(value)
    else:
        for key, about in value.items():
            if isinstance(about, str | list) or about is None:
                yield Row(f"key {key!r}", {"file_name": key, "text": about})
            elif isinstance(about, dict):
                yield from _rows_of_key(key, about, is_known, depth)


def _rows_of_key(key: str, about: dict, is_known: KnowsColumns, depth: int) -> Iterator[Row]:
    """Rows of an entry of an object: its key is a file name, or a row number as in pandas, or it has nested rows."""
    cells = named(about)
    if key.isdigit() and is_known(list(cells)):
        yield Row(f"key {key!r}", cells)
    elif is_known(["file_name", *cells]) and not _holds_rows(about, is_known):
        yield Row(f"key {key!r}", {**cells, "file_name": key})
    elif depth:
        yield from _rows_in(about, is_known, depth - 1)


def _holds_rows(about: dict, is_known: KnowsColumns) -> bool:
    """Whether an object's values are rows: each is an object, and each names its own file or there are several."""
    values = [named(value) for value in about.values() if isinstance(value, dict)]
    if len(values) < len(about) or is_known(["file_name", *map(column_name, about)]):
        return False
    return all(is_known(list(cells)) for cells in values) or (
        len(values) > 1 and all(is_known(["file_name", *cells]) for cells in values)
    )


def _columns_of(rows: Any) -> list[str]:
    """The column names of a list of objects, from its first ones; empty for anything else."""
    first = [row for row in rows[:100] if isinstance(row, dict)] if isinstance(rows, list) else []
    return list(dict.fromkeys(name for row in first for name in named(row)))


def _with_files(value: dict) -> dict:
    """The entries of an object; in COCO's layout, the file name is added to each caption that refers to its id."""
    for files, reference in _REFERENCES.items():
        listed = value.get(files)
        rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
        names = {str(row["id"]): row["file_name"] for row in rows if "id" in row and "file_name" in row}
        if names:
            return {
                name: [_with_file(row, reference, names) for row in rows] if isinstance(rows, list) else rows
                for name, rows in value.items()
            }
    return value


def _with_file(row: Any, reference: str, names: dict[str, Any]) -> Any:
    return {**row, "file_name": names.get(str(row[reference]))} if isinstance(row, dict) and reference in row else row


def _rows_of_columns(value: dict) -> Iterator[Row]:
    """Rows of {"file_name": [...], "text": [...]}, also with objects in place of lists (pandas); or a single row."""
    columns = {
        column_name(key): list(cells.values()) if isinstance(cells, dict) else cells for key, cells in value.items()
    }
    lengths = {len(cells) if isinstance(cells, list) else None for cells in columns.values()}
    if len(lengths) == 1 and None not in lengths:
        for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
            yield Row(f"row {number}", dict(zip(columns, cells, strict=True)))
        return
    yield Row("the object", named(value))
