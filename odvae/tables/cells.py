"""Parsing of table cells: file names, captions (also lists written as text), classes and times."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from odvae.tables.rows import is_empty

# Keys that have the caption in an object used as a caption; the first one present is used.
_CAPTION_KEYS = (
    "text", "caption", "captions", "cap", "prompt", "description", "content", "long", "detailed", "dense", "en",
    "english", "short", "sentence", "title",
)  # fmt: skip

_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_CONTROL = re.compile("[\0-\x1f\x7f\ufeff]")

# An array of texts as printed by NumPy: without commas, so Python would concatenate the texts.
_NUMPY_LIST = re.compile(rf"\[\s*{_STRING}(?:\s+{_STRING})+\s*\]", re.DOTALL)
_NUMPY_ARRAY = re.compile(r"(?:np\.|numpy\.)?array\((?P<list>\[.*\])(?:,\s*dtype=[^()]*)?\)", re.DOTALL)


def text_of(cell: Any) -> Any:
    """Bytes decoded as text, those that are not UTF-8 as lone surrogates; anything else unchanged."""
    return cell.decode("utf-8", errors="surrogateescape") if isinstance(cell, bytes) else cell


def file_of(cell: Any) -> str:
    """The file name or id in a cell; empty if there is none. {"path": ...} is Hugging Face's form of a video."""
    if isinstance(cell, dict):
        cell = cell.get("path")
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    cell = text_of(cell)
    if is_empty(cell) or isinstance(cell, bool):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip() if isinstance(cell, str | int) else ""


def class_of(cell: Any) -> str | None:
    """The class name in a cell; None if there is none."""
    cell = text_of(cell)
    if is_empty(cell):
        return None
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def captions_of_cell(cell: Any) -> list[str]:
    """The captions in a cell: a text, a list of texts (also written as text), or objects with one caption each.

    Empty captions in a list are kept, since the list may have one per part of a video.
    """
    cell = text_of(cell)
    if is_empty(cell) or isinstance(cell, bool):
        return []
    if isinstance(cell, str):
        written = written_in(cell)
        if isinstance(written, dict):
            return captions_of_cell(written) or [one_line(cell)]
        if written is None or not all(_may_be_caption(one) for one in written):
            return [] if cell.strip().lower() == "none" else [one_line(cell)]
        cell = written
    if isinstance(cell, list | tuple):
        return [caption for one in cell for caption in captions_of_cell(one) or [""]]
    if isinstance(cell, dict):
        texts = [name for name in _CAPTION_KEYS if not is_empty(cell.get(name))]
        return captions_of_cell(cell[texts[0]]) if texts else []
    return [one_line(str(cell))]


def is_list(cell: Any) -> bool:
    """Whether a cell is a list, or a list written as text."""
    return isinstance(cell, list) or list_in(cell) is not None


def list_in(cell: Any) -> list | None:
    """The list that is written as text in a cell, as in Panda-70M; None for any other text."""
    written = written_in(cell) if isinstance(cell, str) else None
    return written if isinstance(written, list) else None


def written_in(cell: str) -> list | dict | None:
    """The list or object that is written as text in JSON, Python or NumPy syntax; None for any other text."""
    text = cell.strip()
    if array := _NUMPY_ARRAY.fullmatch(text):
        text = array["list"]
    if text[:1] + text[-1:] not in ("[]", "{}", "()"):
        return None
    if _NUMPY_LIST.fullmatch(text):
        text = f"[{', '.join(re.findall(_STRING, text, re.DOTALL))}]"
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):  # TypeError: {[]: 1}
            continue
        value = list(value) if isinstance(value, tuple) else value
        return value if isinstance(value, list | dict) else None
    return None


def one_line(text: str) -> str:
    """A text without line breaks, control characters and repeated blanks."""
    return " ".join(_CONTROL.sub(" ", text).split())


def is_valid_text(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: it has no lone surrogates, which represent bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _may_be_caption(one: Any) -> bool:
    return isinstance(one, str) or one is None or (isinstance(one, dict) and bool(captions_of_cell(one)))


def seconds(written: object) -> float | None:
    """Parse a time: 12.5, "12.5", "0:01:12.500" or "00-01-12-500" -> seconds; None for anything else."""
    if isinstance(written, bool) or not isinstance(written, int | float | str):
        return None
    try:
        return _seconds(written.strip()) if isinstance(written, str) else float(written)
    except (ValueError, OverflowError):  # no number, or one that is beyond all numbers
        return None


def _seconds(text: str) -> float:
    if match := re.fullmatch(r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)", text):
        hours, minutes, rest = match.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))
    if match := re.fullmatch(r"(\d+)-(\d+)-(\d+)-(\d{3})", text):
        hours, minutes, rest, thousandths = map(int, match.groups())
        return hours * 3600 + minutes * 60 + rest + thousandths / 1000
    return float(text)


def pairs_of_times(listed: list) -> list[tuple[float, float]]:
    """Parse a list of pairs of times -> (start, end) in seconds; empty if it has anything else."""
    found = []
    for pair in listed:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return []
        start, end = map(seconds, pair)
        if start is None or end is None:
            return []
        found.append((start, end))
    return found
