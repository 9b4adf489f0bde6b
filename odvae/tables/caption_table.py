"""A caption table: which videos of a folder its rows refer to, and the captions and classes of these videos."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odvae.running.errors import InputError
from odvae.running.text import printable, read_text_file, valid_unicode
from odvae.tables.columns import Columns, Meaning
from odvae.tables.formats import read_table
from odvae.tables.row_matching import FileIndex, Fit, Match
from odvae.tables.rows import Row

_FILE_LISTS = ("videos.txt", "video.txt", "images.txt", "image.txt")
_CAPTION_LISTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")

# Maximum number of rows without a video (and the like) that are listed by name.
_NAMED = 10_000


# A column with the name of a file means that the table has no header.
_CALLED_AS_A_FILE = re.compile(r"\.(?:mp4|webm|mkv|mov|avi|m4v|gif|jpe?g|png|webp)$")


class NoSuchColumnsError(InputError):
    """A table without a file column, or without a caption or class column."""


@dataclass
class _Found:
    """The captions and the class that a table has for one file."""

    fit: Fit
    captions: list[str] = field(default_factory=list)
    label: str | None = None
    written: list[str] = field(default_factory=list)
    """The file's name in rows that do not have its exact path."""
    problem: str = ""
    rows_of_several: list[str] = field(default_factory=list)
    """Its rows that also match files in other folders."""
    parts: int = 0
    """If the file is a whole video: the number of its parts that rows describe."""


class CaptionTable:
    """A caption table; only rows that refer to one of the files are kept.

    All captions of a video are kept (a list in a row, or several rows). `name` is the table's path relative to the
    root of the index, if it is below that.
    """

    def __init__(self, path: Path, index: FileIndex, columns: Columns | None = None, name: str = "") -> None:
        self.path, self.index, self.columns = path, index, columns or Columns()
        self.name, self.folder = name or path.name, os.path.dirname(name)
        self.is_known = False
        """Whether it has a file column and a caption or class column."""
        self.rows = 0
        self.used: set[str] = set()
        self.rows_without_file = CountedNames()
        """Rows without a file name, or with the name of a file that is not in the folder."""
        self.rows_without_caption = CountedNames()
        self.text_columns: Counter[str] = Counter()
        """Number of captions by their column."""
        self._found: dict[str, _Found] = {}

    def find(self, file: str) -> tuple[list[str], str | None]:
        """The captions of a file in this table (possibly with empty ones and duplicates), and its class.

        Raises InputError if its row is not UTF-8, or if it is ambiguous which row belongs to it.
        """
        found = self._found.get(file)
        if found is None:
            return [], None
        self.used.add(file)
        if found.problem:
            raise InputError(found.problem)
        if len(found.written) > 1:
            raise InputError(
                f"{self.name} has several rows for this video: {', '.join(map(printable, found.written[:3]))}"
            )
        return found.captions, found.label

    @property
    def files(self) -> set[str]:
        """Files for which the table has rows."""
        return set(self._found)

    @property
    def of_several(self) -> list[str]:
        """Files whose rows have only the name, which files in other folders have too."""
        times_given = Counter(row for found in self._found.values() for row in found.rows_of_several)
        return [
            file for file, found in self._found.items() if any(times_given[row] > 1 for row in found.rows_of_several)
        ]

    def captions_of(self, file: str) -> list[str]:
        """The captions of a file that are not empty, without the checks of `find`."""
        return [one for one in self._found[file].captions if one] if file in self._found else []

    @property
    def captioned_in_parts(self) -> list[str]:
        """Whole videos whose captions describe several of their parts."""
        return [file for file, found in self._found.items() if found.parts > 1]

    def read(self) -> CaptionTable:
        """Read all rows. Raises InputError if the file is broken or lacks a file, caption or class column."""
        first = None
        for row in self._rows():
            first = first or row
            self.rows += 1
            self._note_columns(list(row.cells))
            meaning = self.columns.read(row.cells)
            matches = next((found for file in meaning.files if (found := self.index.find(file, self.folder))), [])
            if not self._add(matches, meaning, row.where):
                self.rows_without_file.add(row.where, meaning.files[0] if meaning.files else "names no file")
            elif not any(meaning.captions) and meaning.label is None:
                self.rows_without_caption.add(row.where, meaning.files[0])
            else:
                self.text_columns.update(meaning.text_columns)
        if first is not None and not self.is_known:
            there = [column for column in first.cells if column]
            needs = f"needs {self.columns.allowed()}, found {', '.join(there) or 'no columns'}"
            if any(map(_CALLED_AS_A_FILE.search, there)):
                needs += "; the first line must name the columns"
            raise NoSuchColumnsError(f"{self.path}, {first.where}: {needs}")
        return self

    def _rows(self) -> Iterator[Row]:
        if is_caption_list(self.path):
            self.columns, self.is_known = Columns(), True
            return _rows_of_lists(self.path)
        return read_table(self.path, self.columns.are_known, self._note_columns)

    def _note_columns(self, columns: Sequence[str]) -> None:
        self.is_known |= self.columns.are_known(columns)

    def _add(self, matches: list[Match], meaning: Meaning, where: str) -> bool:
        """Keep a row's captions and class for the files that it matches. Returns whether it matches any."""
        whole = any(match.is_whole for match in matches)
        if whole and not meaning.times:  # then a list has alternative captions
            matches = [match for match in matches if match.is_whole]
        numbers = [match.part for match in matches if match.part is not None]
        first = 1 if numbers and 0 not in numbers and max(numbers) == len(meaning.captions) else 0
        of_several = len(matches) > 1 and all(match.is_whole and match.fit[2] for match in matches)
        any_fits = False
        for match in matches:
            captions = _of_part(match, meaning, first)
            if captions is not None:
                self._keep(match, captions, meaning, where, of_several)
                any_fits = True
        return any_fits

    def _keep(self, match: Match, captions: list[str], meaning: Meaning, where: str, of_several: bool) -> None:
        found = self._found.get(match.file)
        if found is None or match.fit < found.fit:
            found = self._found[match.file] = _Found(match.fit)
        elif match.fit > found.fit:
            return
        if any(match.fit[:3]) and meaning.files[0] not in found.written:
            found.written.append(meaning.files[0])
        if not meaning.is_text:
            found.problem = f"its row in {self.name}, {where}, is not UTF-8"
        found.captions += captions
        found.rows_of_several += [where] if of_several else []
        found.label = meaning.label if found.label is None else found.label
        found.parts += len(meaning.times) if match.is_whole else 0


class CountedNames:
    """Counts things, and keeps the names of the first ones."""

    def __init__(self) -> None:
        self.count = 0
        self.names: dict[str, str] = {}

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, name: str, value: str) -> None:
        self.count += 1
        if self.count <= _NAMED:
            self.names[name] = valid_unicode(value)

    def shown(self) -> str:
        """The count and the first few names, as text."""
        return f"{self.count} ({', '.join(list(self.names)[:3])}{', ...' if self.count > 3 else ''})"

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "names": self.names}


def _of_part(match: Match, meaning: Meaning, first: int) -> list[str] | None:
    """A row's captions for a file that may be a part of the row's video; None if the row describes other parts.

    `first` is the number of the first part in the files' names.
    """
    if match.times is not None:
        for i, times in enumerate(meaning.times):
            if all(abs(one - other) < 0.5 for one, other in zip(times, match.times, strict=True)):
                return list(meaning.captions[i : i + 1] if len(meaning.times) > 1 else meaning.captions)
        return None
    if match.part is not None:
        i, count = match.part - first, len(meaning.captions)
        one_caption_per_part = meaning.listed and len(meaning.times) in (0, count)
        return [meaning.captions[i]] if one_caption_per_part and i < count else None
    return list(meaning.captions)


def is_caption_list(path: str | Path) -> bool:
    """Whether a file has the usual name of a list with one caption per line, which belongs to a list of videos."""
    return os.path.basename(path).lower() in _CAPTION_LISTS


def is_list_of_files(path: str | Path) -> bool:
    """Whether a file has the usual name of a list with one video path per line."""
    return os.path.basename(path).lower() in _FILE_LISTS


def _rows_of_lists(captions: Path) -> Iterator[Row]:
    """Rows of finetrainers' pair of files: one has the videos' paths, the other their captions, line by line."""
    listed = sorted(path for path in captions.parent.iterdir() if is_list_of_files(path))
    if not listed:
        raise InputError(f"{captions}: needs a list of its videos in the same folder ({', '.join(_FILE_LISTS)})")
    files = listed[-1]  # the list of videos, if there is one of images too
    videos, texts = (read_text_file(path).removesuffix("\n").split("\n") for path in (files, captions))
    if not len(_without_blank_end(texts)) <= len(_without_blank_end(videos)) <= len(texts):
        raise InputError(
            f"{files} has {len(_without_blank_end(videos))} lines and {captions} has {len(_without_blank_end(texts))}: "
            "they must have the same number of lines, one per video"
        )
    for number, (file, caption) in enumerate(zip(videos, texts, strict=False), start=1):
        if file.strip():
            yield Row(f"line {number}", {"file_name": file, "text": caption})


def _without_blank_end(lines: list[str]) -> list[str]:
    end = len(lines)
    while end and not lines[end - 1].strip():
        end -= 1
    return lines[:end]
