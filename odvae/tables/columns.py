"""The usual column names of caption tables: columns with the file name, the captions, the class and the times."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from odvae.tables.cells import captions_of_cell, class_of, file_of, is_list, is_valid_text, list_in, pairs_of_times
from odvae.tables.rows import is_empty

# Compared without underscores: "file_name" also matches "filename" and "fileName".
_PATHS = (
    "file_name", "file", "file_path", "path", "video", "video_path", "video_file", "video_name", "video_file_name",
    "videos", "media", "media_path", "media_file", "clip", "clip_path", "clip_name", "clip_file", "image",
    "image_path", "image_file", "image_name", "img_path", "relative_path", "rel_path", "local_path",
)  # fmt: skip
_IDS = (
    "video_id", "vid", "clip_id", "youtube_id", "ytid", "__key__", "uuid", "uid", "id", "name",
)  # fmt: skip
_URLS = ("url", "video_url", "content_url", "download_url", "link", "video_link", "video_loc", "uri")
_TEXTS = (
    "text", "caption", "captions", "cap", "txt", "prompt", "prompts", "description", "descriptions", "video_caption",
    "long_caption", "detailed_caption", "dense_caption", "long_prompt", "recaption", "refined_caption", "sentence",
    "sentences", "en_cap", "text_en", "caption_en", "short_caption", "summarized_caption", "short_prompt", "alt_text",
    "title", "query",
)  # fmt: skip
_CLASSES = ("label", "class", "class_name", "class_label")
_STARTS = ("start", "start_time", "time_start", "start_timestamp", "start_sec", "t_start", "begin")
_ENDS = ("end", "end_time", "time_end", "end_timestamp", "end_sec", "t_end", "stop")
_TIMES = ("timestamp", "timestamps", "clip_time", "segment", "segments")
_FILE_NAME = re.compile(r".+filename")  # Hugging Face: any column whose name ends like this
_NUMBERED_TEXT = re.compile(r"(?:caption|text|prompt|sentence|description)\d{1,9}")
_OTHER_TEXT = re.compile(r".+_(?:caption|captions|prompt|description)$")
_NO_TEXT = re.compile(r"^(?:negative|has|is|num|n|no)_")
_WEBVID = {"videoid", "page_dir"}


@dataclass(frozen=True)
class Meaning:
    """The content of a row: possible names of its file, captions, class, and times of the video's parts."""

    files: tuple[str, ...]
    captions: tuple[str, ...]
    """May include empty ones and duplicates."""
    label: str | None
    listed: bool
    """Whether the captions are a list, which may have one per part of the video."""
    times: tuple[tuple[float, float], ...] = ()
    text_columns: tuple[str, ...] = ()
    """The columns of the captions."""

    @property
    def is_text(self) -> bool:
        """Whether captions and class can be encoded as UTF-8."""
        return is_valid_text("".join(self.captions) + (self.label or ""))


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read; a name that is set replaces the usual ones."""

    file: str | None = None
    text: str | None = None

    def are_known(self, columns: Sequence[str]) -> bool:
        """Whether these include a file column and a caption or class column."""
        chosen = choose(tuple(columns), self.file, self.text)
        return bool(chosen.files and (chosen.texts or chosen.labels))

    def read(self, cells: Mapping[str, Any]) -> Meaning:
        """Read the content of a row; `files` and `captions` are empty if it has none."""
        chosen = choose(tuple(cells), self.file, self.text)
        files = [file for column in chosen.files if (file := file_of(cells[column]))]
        if cells.keys() >= _WEBVID and (page := file_of(cells["page_dir"])) and files:
            files = [f"{page}/{files[0]}", files[0]]
        captions: list[str] = []
        text_columns = []
        listed = False
        for column in chosen.texts:
            found = captions_of_cell(cells[column])
            captions += found
            text_columns += [column] if any(found) else []
            listed |= is_list(cells[column])
            if any(captions) and column not in chosen.numbered:
                break  # the others are alternative captions
        label = next((cells[column] for column in chosen.labels if not is_empty(cells[column])), None)
        return Meaning(
            tuple(files), tuple(captions), class_of(label), listed, _times(cells, chosen), tuple(text_columns)
        )

    def allowed(self) -> str:
        """The columns that a table must have, as text for messages."""
        file = f"the column {self.file!r} (file_column)" if self.file else f"a file column ({_shown(_PATHS)}, or an id)"
        text = f"the column {self.text!r} (text_column)" if self.text else f"a text column ({_shown(_TEXTS)})"
        return f"{file} and {text} or a class column ({', '.join(_CLASSES[:3])})"


@dataclass(frozen=True)
class Chosen:
    """The columns of a table that are read."""

    files: tuple[str, ...]
    texts: tuple[str, ...]
    """In order of preference: the first that is not empty is used."""
    numbered: frozenset[str]
    """Those of `texts` that are all used: caption_1, caption_2, ..."""
    labels: tuple[str, ...]
    starts: tuple[str, ...]
    ends: tuple[str, ...]
    times: tuple[str, ...]


@lru_cache(maxsize=1024)
def choose(columns: tuple[str, ...], file: str | None, text: str | None) -> Chosen:
    """Choose the columns that are read; `file` and `text` replace the usual names.

    A column within an object ("meta.path") is used if the row itself has none of this kind.
    """
    plain = {_bare(name): name for name in reversed(columns)}  # the first of equals
    within = {_bare(name.rpartition(".")[2]): name for name in reversed(columns) if "." in name}

    def known(names: Iterable[str], places: Mapping[str, str]) -> list[str]:
        return list(dict.fromkeys(places[bare] for bare in map(_bare, names) if bare in places))

    def known_anywhere(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(known(names, plain) or known(names, within))

    if file:
        files = known([file], plain)
    else:
        files = known(_PATHS, plain) + [name for bare, name in plain.items() if _FILE_NAME.fullmatch(bare)]
        files = files or known(_PATHS, within) + known(_IDS, plain) or known(_IDS, within) or known(_URLS, plain)
    if text:
        texts, numbered = known([text], plain), frozenset[str]()
    else:
        webvid = ["name"] if {"videoid", "name"} <= set(columns) else []
        numbered = frozenset(name for bare, name in plain.items() if _NUMBERED_TEXT.fullmatch(bare))
        texts = webvid + known(_TEXTS, plain)
        texts += sorted(numbered, key=lambda name: int(re.sub(r"\D", "", name)))
        others = (name for name in columns if "." not in name and _OTHER_TEXT.match(name))
        texts += [name for name in others if not _NO_TEXT.match(name)]
        texts = [name for name in dict.fromkeys(texts) if name not in files or name in webvid]
        texts = texts or known(_TEXTS, within)
    return Chosen(
        tuple(dict.fromkeys(files)),
        tuple(texts),
        numbered,
        *map(known_anywhere, (_CLASSES, _STARTS, _ENDS, _TIMES)),
    )


def url_column(columns: Sequence[str]) -> str | None:
    """The column of a table that has URLs, by its name; None if there is none."""
    by_bare_name = {_bare(name): name for name in reversed(columns)}
    return next((by_bare_name[bare] for bare in map(_bare, _URLS) if bare in by_bare_name), None)


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name)


def _shown(names: Sequence[str]) -> str:
    return ", ".join((*names[:6], "..."))


def _times(cells: Mapping[str, Any], chosen: Chosen) -> tuple[tuple[float, float], ...]:
    """(start, end) in seconds of the parts of a longer video that a row describes."""
    start, end = (next((cells[name] for name in names), None) for names in (chosen.starts, chosen.ends))
    if start is not None and end is not None:
        return tuple(pairs_of_times([[start, end]]))
    cell = next((cells[name] for name in chosen.times), None)
    listed = list_in(cell) or cell
    if not isinstance(listed, list):
        return ()
    return tuple(pairs_of_times(listed if listed and isinstance(listed[0], list) else [listed]))
