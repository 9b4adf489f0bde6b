"""Rows of Parquet, Arrow and Feather tables, read with pyarrow; columns of bytes, which may be videos, are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odvae.running.errors import InputError
from odvae.tables.rows import KnowsColumns, NotesColumns, Row, check_columns, column_name, open_table


def arrow_rows(path: Path, is_known: KnowsColumns, note_columns: NotesColumns) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        for batch in _batches(path, is_known, note_columns):
            batch.validate(full=True)  # Arrow's columns are read in place: offsets that are wrong end the process
            columns = dict(_columns(batch, is_known))
            for cells in zip(*(column.to_pylist() for column in columns.values()), strict=True):
                number += 1
                yield Row(f"row {number}", dict(zip(columns, cells, strict=True)))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = path.suffix.lstrip(".")
        raise InputError(f"{path} cannot be read as a {kind} table: {error}") from None


def _batches(path: Path, is_known: KnowsColumns, note_columns: NotesColumns) -> Iterator[Any]:
    from pyarrow import ipc, parquet

    with open_table(path) as file:
        magic = file.read(8)
        file.seek(0)
        if magic.startswith(b"PAR1"):
            table = parquet.ParquetFile(file)
            _note_names(table.schema_arrow, path, note_columns)
            yield from table.iter_batches(4096, columns=list(_light_columns(table.schema_arrow, is_known)))
            return
        opened = ipc.open_file(file) if magic.startswith(b"ARROW1") else ipc.open_stream(file)
        _note_names(opened.schema, path, note_columns)
        if magic.startswith(b"ARROW1"):
            yield from (opened.get_batch(i) for i in range(opened.num_record_batches))
        else:
            yield from opened


def _note_names(schema: Any, path: Path, note_columns: NotesColumns) -> None:
    names = [column_name(name) for name in schema.names]
    note_columns(names)
    check_columns(names, str(path))


def _light_columns(schema: Any, is_known: KnowsColumns) -> Iterator[str]:
    """The columns that are read; from a struct with a video, its path without its bytes."""
    import pyarrow

    for entry in schema:
        if pyarrow.types.is_struct(entry.type):
            yield from (f"{entry.name}.{part.name}" for part in entry.type if _is_light(part.type))
        elif _is_wanted(entry, is_known):
            yield entry.name


def _columns(batch: Any, is_known: KnowsColumns, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, column) of a batch, also of the fields of structs ("video.path")."""
    import pyarrow

    for entry, column in zip(batch.schema, batch.columns, strict=True):
        name = prefix + column_name(entry.name)
        if pyarrow.types.is_struct(entry.type):
            if all(_is_light(part.type) for part in entry.type):
                yield name, column
            parts = pyarrow.RecordBatch.from_arrays(column.flatten(), names=[part.name for part in entry.type])
            yield from _columns(parts, is_known, f"{name}.")
        elif _is_wanted(entry, is_known):
            yield name, column


def _is_wanted(entry: Any, is_known: KnowsColumns) -> bool:
    """Whether a column may be needed. Columns of bytes are read only if they have the name of a text column."""
    name = column_name(entry.name)
    is_text = is_known(["file_name", name]) or name.endswith(("name", "path", "id"))
    return _is_light(entry.type) or (_is_binary(entry.type) and is_text)


def _is_light(kind: Any) -> bool:
    """Whether cells can be a file name, a caption, a class or a time: not bytes, dates or maps."""
    from pyarrow import types

    return not (_is_binary(kind) or types.is_temporal(kind) or types.is_map(kind))


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return any(
        test(kind)
        for test in (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    )
