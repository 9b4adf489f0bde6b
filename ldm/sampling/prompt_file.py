"""Files of prompts: a text with one in each line, or a table with a column of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odvae.running.errors import InputError
from odvae.running.text import read_text_file
from odvae.tables.formats import EXTENSIONS, read_table, table_kind
from odvae.tables.rows import Row, is_empty

# Columns of a table, the first one that it has.
_PROMPT_COLUMNS = ("prompt", "prompt_en", "text", "caption", "sentence")
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Prompt:
    """A prompt of a file, and what its row says of its own."""

    text: str
    negative: str | None = None
    seed: int | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a text file, one per line, or of a table (CSV, TSV, JSON, JSON lines, Parquet, Arrow).

    A table has a column `prompt` (or prompt_en, text, caption, sentence), and may have `negative_prompt` and `seed`;
    others are not read. Raises InputError, with the file and the line, for an empty prompt in a table, a seed that is
    no number, and a file without prompts.
    """
    kind = table_kind(path)
    if kind is None:
        lines = read_text_file(path, "--prompts").split("\n")
        prompts = [Prompt(line.strip()) for line in lines if line.strip()]
    else:
        prompts = list(_prompts_of_table(path))
    if not prompts:
        tables = ", ".join(f".{extension}" for extension in EXTENSIONS)
        raise InputError(f"--prompts {path} holds no prompt; it must have one per line, or be a table ({tables})")
    return prompts


def _prompts_of_table(path: Path) -> Iterator[Prompt]:
    for row in read_table(path, lambda columns: any(name in _PROMPT_COLUMNS for name in columns)):
        where = f"--prompts {path}, {row.where}"
        column = next((name for name in _PROMPT_COLUMNS if name in row.cells), None)
        if column is None:
            raise InputError(f"{where}: has no column {', '.join(_PROMPT_COLUMNS)}, only {', '.join(row.cells)}")
        text = row.cells[column]
        if is_empty(text) or not isinstance(text, str):
            raise InputError(f"{where}: its {column} is no text: {text!r:.100}")
        yield Prompt(text.strip(), _negative(row, where), _seed(row, where))


def _negative(row: Row, where: str) -> str | None:
    found = row.cells.get("negative_prompt")
    if is_empty(found):
        return None
    if not isinstance(found, str):
        raise InputError(f"{where}: its negative_prompt is no text: {found!r:.100}")
    return found.strip()


def _seed(row: Row, where: str) -> int | None:
    found: Any = row.cells.get("seed")
    if is_empty(found):
        return None
    text = str(found).strip()
    if isinstance(found, bool) or not text.isdecimal() or len(text) > 19 or int(text) > MOST_SEED:
        raise InputError(f"{where}: its seed is {found!r:.100}, expected a whole number from 0 to {MOST_SEED}")
    return int(text)
