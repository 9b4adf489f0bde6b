"""What the columns of data sets' tables are called, and what their cells hold: the file, its captions, its class."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from odvae.tables.row_matching import seconds
from odvae.tables.rows import is_empty

_PATHS = (
    "file_name", "filename", "file", "file_path", "filepath", "path", "video", "video_path", "videopath", "video_file",
    "video_name", "video_filename", "videos", "media", "media_path", "clip", "clip_path", "clip_name", "clip_file",
    "image", "image_path", "image_file", "image_name", "img_path", "relative_path", "rel_path", "local_path",
)  # fmt: skip
_IDS = (
    "videoid", "video_id", "vid", "clip_id", "clipid", "youtubeid", "youtube_id", "ytid", "yt_id", "__key__", "key",
    "uuid", "uid", "id", "name",
)  # fmt: skip
_TEXTS = (
    "text", "caption", "captions", "cap", "txt", "prompt", "prompts", "description", "descriptions", "video_caption",
    "long_caption", "detailed_caption", "dense_caption", "long_prompt", "recaption", "refined_caption", "sentence",
    "sentences", "encap", "text_en", "caption_en", "short_caption", "summarized_caption", "short_prompt", "alt_text",
    "title", "query",
)  # fmt: skip
_CLASSES = ("label", "class", "class_name", "classname", "class_label")
_NUMBERED_TEXT = re.compile(r"^(?:caption|text|prompt|sentence|description)_?\d{1,9}$")
_OTHER_TEXT = re.compile(r"^(?!negative_).*_(?:caption|captions|prompt|description)$")
_STARTS = ("start", "start_time", "time_start", "start_timestamp", "start_sec", "t_start", "begin")
_ENDS = ("end", "end_time", "time_end", "end_timestamp", "end_sec", "t_end", "stop")
_TIMES = ("timestamp", "timestamps", "clip_time", "segment", "segments")
_WEBVID = {"videoid", "page_dir"}


@dataclass(frozen=True)
class Meaning:
    """What a row says: of which file (the ways it may be named), its captions, its class, its parts' times."""

    files: tuple[str, ...]
    captions: tuple[str, ...]
    """Some may be empty, and some the same."""
    label: str | None
    listed: bool
    """Whether the captions come as a list, which may be one a part of the video."""
    times: tuple[tuple[float, float], ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether captions and class are such that they can be written as UTF-8."""
        return is_valid_text("".join(self.captions) + (self.label or ""))


@dataclass(frozen=True)
class Columns:
    """Which columns of a table count; a name that is set takes the place of the usual ones."""

    file: str | None = None
    text: str | None = None

    def are_known(self, columns: Sequence[str]) -> bool:
        """Whether a table with these columns names files and says something of them."""
        chosen = choose(tuple(columns), self.file, self.text)
        return bool(chosen.files and (chosen.texts or chosen.labels))

    def read(self, cells: Mapping[str, Any]) -> Meaning:
        """What a row says; without files where it names none, without captions where it has none."""
        chosen = choose(tuple(cells), self.file, self.text)
        files = [file for column in chosen.files if (file := file_of(cells[column]))]
        if cells.keys() >= _WEBVID and (page := file_of(cells["page_dir"])) and files:
            files = [f"{page}/{files[0]}", files[0]]
        captions: list[str] = []
        listed = False
        for column in chosen.texts:
            captions += captions_of_cell(cells[column])
            listed |= isinstance(cells[column], list) or list_in(cells[column]) is not None
            if any(captions) and column not in chosen.numbered:
                break  # the others are other words for the same
        label = next((cells[column] for column in chosen.labels if not is_empty(cells[column])), None)
        return Meaning(tuple(files), tuple(captions), class_of(label), listed, _times(cells))


@dataclass(frozen=True)
class Chosen:
    """The columns of a table that count."""

    files: tuple[str, ...]
    texts: tuple[str, ...]
    """In the order in which they are looked at; the first that holds something counts."""
    numbered: frozenset[str]
    """Those of `texts` that count together: caption_1, caption_2, ..."""
    labels: tuple[str, ...]


@lru_cache(maxsize=1024)
def choose(columns: tuple[str, ...], file: str | None, text: str | None) -> Chosen:
    """The columns that count, of a table that has these; a name that is given takes the place of the usual ones."""
    there = set(columns)
    files = [file] if file else [name for name in _PATHS if name in there]
    files = files or [name for name in _IDS if name in there]
    files = [name for name in files if name in there]
    if text:
        texts, numbered = [text] if text in there else [], frozenset[str]()
    else:
        webvid = ["name"] if {"videoid", "name"} <= there else []
        numbered = frozenset(name for name in columns if _NUMBERED_TEXT.match(name))
        texts = webvid + [name for name in _TEXTS if name in there]
        texts += sorted(numbered, key=lambda name: int(re.sub(r"\D", "", name)))
        texts += [name for name in columns if _OTHER_TEXT.match(name) and name not in texts]
        texts = [name for name in texts if name not in files or name in webvid]
    return Chosen(tuple(files), tuple(texts), numbered, tuple(name for name in _CLASSES if name in there))


def names_allowed() -> str:
    """The usual names of the columns, for messages."""
    return (
        f"a file column ({', '.join(_PATHS[:7:2])}, ..., or an id) and a text column ({', '.join(_TEXTS[:6])}, ...) or "
        f"a class column ({', '.join(_CLASSES[:3])})"
    )


def file_of(cell: Any) -> str:
    """A file's name or id in a cell; empty where there is none. {"path": ...} is how Hugging Face has a video."""
    if isinstance(cell, dict):
        cell = cell.get("path")
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if is_empty(cell) or isinstance(cell, bool):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip() if isinstance(cell, str | int) else ""


def class_of(cell: Any) -> str | None:
    if is_empty(cell):
        return None
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def captions_of_cell(cell: Any) -> list[str]:
    """The captions in a cell: a text, a list of them (also written as text), or objects that hold one each.

    An empty one in a list keeps its place, for the list may be of the parts of a video.
    """
    if is_empty(cell):
        return []
    if isinstance(cell, str):
        listed = list_in(cell)
        if listed is None or not all(isinstance(one, str) or one is None for one in listed):
            return [one_line(cell)]
        cell = listed
    if isinstance(cell, list):
        return [caption for one in cell for caption in captions_of_cell(one) or [""]]
    if isinstance(cell, dict):
        texts = [name for name in (*_TEXTS, "en") if not is_empty(cell.get(name))]
        return captions_of_cell(cell[texts[0]]) if texts else []
    return [one_line(str(cell))]


def list_in(cell: Any) -> list | None:
    """The list that a cell's text is in Python's or JSON's form, as Panda-70M has it; None for any other text."""
    text = cell.strip() if isinstance(cell, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else None
    return None


def _times(cells: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    """(start, end) of the parts of a longer video that a row speaks of, in seconds."""
    start, end = (next((cells[name] for name in names if name in cells), None) for names in (_STARTS, _ENDS))
    if start is not None and end is not None:
        return tuple(_pairs([[start, end]]))
    cell = next((cells[name] for name in _TIMES if name in cells), None)
    listed = list_in(cell) or cell
    if not isinstance(listed, list):
        return ()
    return tuple(_pairs(listed if listed and isinstance(listed[0], list) else [listed]))


def _pairs(listed: list) -> list[tuple[float, float]]:
    """Of what is a pair of times; none where anything else is among them."""
    found = []
    for pair in listed:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return []
        start, end = map(seconds, pair)
        if start is None or end is None:
            return []
        found.append((start, end))
    return found


def is_valid_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no lone surrogate, as bytes that are not UTF-8 are kept."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def one_line(text: str) -> str:
    return " ".join(text.split())
