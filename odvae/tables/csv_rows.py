"""Strict reader of CSV tables: ambiguous rows are errors that name the line.

Errors are more cells than the header has, a quote that is never closed, and text after a closing quote. The delimiter
(comma, tab, semicolon or bar) is detected from the header.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from odvae.running.errors import InputError
from odvae.running.text import other_encoding
from odvae.tables.rows import KnowsColumns, NotesColumns, Row, check_columns, column_name, open_table

_SEPARATOR_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}

# A first line that sets the delimiter for Excel.
_SEPARATOR_HINT = re.compile(r'^\s*"?sep=([,;|\t])"?\s*$', re.IGNORECASE)

# A cell of several lines, one of which starts like a row: with the name of a video and a delimiter.
_VIDEO = r"\.(?:mp4|webm|mkv|mov|avi|m4v|gif|mpe?g|m?ts|m2ts|flv|wmv|3gp|ogv|jpe?g|png|webp)"
_SWALLOWED_ROW = re.compile(rf'[\r\n][^\r\n,;|\t"]{{1,300}}{_VIDEO}"?[,;|\t]', re.IGNORECASE)


def csv_rows(path: Path, is_known: KnowsColumns, note_columns: NotesColumns = lambda _: None) -> Iterator[Row]:
    with _text_of(path) as text:
        first = text.readline()
        while first and not first.strip():
            first = text.readline()
        if not first:
            return
        hint = _SEPARATOR_HINT.match(first)
        delimiter = hint[1] if hint else _delimiter(first, path, is_known)
        text.seek(0)
        records = _records(text, delimiter, path)
        header: list[str] = []
        for line, cells in records:
            if not any(cell.strip() for cell in cells):
                continue
            if hint and not header:
                hint = None  # the hint is no header
            elif not header:
                header = [column_name(cell) for cell in cells]
                note_columns(header)
                _check_header(header, path, line)
            elif any(cell.strip() for cell in cells[len(header) :]):
                raise InputError(
                    f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}; a text that contains "
                    f"{_SEPARATOR_NAMES[delimiter]} must be in double quotes: {delimiter.join(cells)[:100]!r}"
                )
            else:
                yield Row(f"line {line}", dict(zip(header, cells, strict=False)))


@contextmanager
def _text_of(path: Path) -> Iterator[io.TextIOWrapper]:
    """Open the file as text; bytes that are not UTF-8 become lone surrogates, so that a bad row costs one video."""
    with open_table(path) as file:
        if other := other_encoding(file.read(1024)):
            raise InputError(f"{path} is {other}, not UTF-8: save it as UTF-8 (iconv -f {other} -t UTF-8)")
        file.seek(0)
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(first_line: str, path: Path, is_known: KnowsColumns) -> str:
    """The delimiter with which the header has known columns; otherwise a comma, or a tab in .tsv."""
    usual = "\t" if re.search(r"\.(tsv|tab)(\.|$)", path.name.lower()) else ","
    for delimiter in (usual, *(other for other in _SEPARATOR_NAMES if other != usual)):
        try:
            cells = next(csv.reader([first_line], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            continue
        if is_known([column_name(cell) for cell in cells]):
            return delimiter
    return usual


def _records(text: io.TextIOWrapper, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line where it starts, cells) of each record."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # lists of captions in a cell exceed the default limit
    try:
        lines = (line.replace("\0", "") for line in text)  # Python 3.10's csv module refuses NUL characters
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        line = 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(f"{path}, {_csv_problem(path, delimiter, line, str(error))}") from None
            if swallowed := next((cell for cell in cells if _SWALLOWED_ROW.search(cell)), None):
                first = swallowed.splitlines()[0][:60]
                raise InputError(
                    f"{path}, line {line}: the quote opened here ({first!r}) is not closed at the end of its text, so "
                    "it includes the rows below it"
                )
            yield line, cells
            line = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _csv_problem(path: Path, delimiter: str, first_line: int, error: str) -> str:
    """Describe the error in the record that starts at a line; the csv module does not give the line of a quote."""
    with _text_of(path) as text:
        for _ in range(first_line - 1):
            text.readline()
        opened, inside, cell_begins = 0, False, True
        for line, content in enumerate(text, start=first_line):
            position = 0
            while position < len(content):
                if inside:
                    position = content.find('"', position)
                    if position < 0:
                        break
                    inside = content[position + 1 : position + 2] == '"'
                    position += 2 if inside else 1
                    if not inside and content[position : position + 1] not in (delimiter, "\r", "\n", ""):
                        return (
                            f"line {line}: text follows the end of a quoted cell, whose quote was opened in line "
                            f'{opened}; a quote within a quoted cell is written twice ("")'
                        )
                    continue
                character = content[position]
                if character == '"' and cell_begins:
                    opened, inside = line, True
                if character != " ":  # blanks are skipped after a delimiter
                    cell_begins = character in (delimiter, "\r", "\n")
                position += 1
    return (
        f"line {opened}: the quote opened in line {opened} is never closed" if inside else f"line {first_line}: {error}"
    )


def _check_header(header: list[str], path: Path, line: int) -> None:
    if marked := [name for name in header if any("\udc80" <= character <= "\udcff" for character in name)]:
        raise InputError(f"{path}, line {line}: the header is not UTF-8 ({marked[0]!r}): save the file as UTF-8")
    check_columns(header, f"{path}, line {line}")
