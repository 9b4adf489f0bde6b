"""One caption table: which of a folder's videos its rows speak of, and what they say."""

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

# Of the rows that no video is for, and the like, so many are named.
_NAMED = 10_000


# A column that is called as a file is: the table has no header.
_CALLED_AS_A_FILE = re.compile(r"\.(?:mp4|webm|mkv|mov|avi|m4v|gif|jpe?g|png|webp)$")


class NoSuchColumnsError(InputError):
    """A table whose columns name no files, or say nothing of them."""


@dataclass
class _Found:
    """What a table says of one file, so far."""

    fit: Fit
    captions: list[str] = field(default_factory=list)
    label: str | None = None
    written: list[str] = field(default_factory=list)
    """How rows write the file where they do not give its exact path."""
    problem: str = ""
    rows_of_several: list[str] = field(default_factory=list)
    """Those of its rows that fit files in other folders as well."""
    parts: int = 0
    """Parts of the video that rows speak of, where the file is the whole of it."""


class CaptionTable:
    """A caption table; of its rows those are kept that speak of one of the files.

    Several captions of a video (a list in a row, or several rows) are all kept. `name` is its path from the folder that
    the index is of, where it lies below that.
    """

    def __init__(self, path: Path, index: FileIndex, columns: Columns | None = None, name: str = "") -> None:
        self.path, self.index, self.columns = path, index, columns or Columns()
        self.name, self.folder = name or path.name, os.path.dirname(name)
        self.is_known = False
        """Whether its columns name files and say something of them."""
        self.rows = 0
        self.used: set[str] = set()
        self.rows_without_file = Named()
        """Rows that name no file, or one that is not here."""
        self.rows_without_caption = Named()
        self.text_columns: Counter[str] = Counter()
        """Captions by the column they are from."""
        self._found: dict[str, _Found] = {}

    def find(self, file: str) -> tuple[list[str], str | None]:
        """The captions that the table has for a file (some may be empty, or the same), and its class.

        Raises InputError where its row is not UTF-8, or several rows could be meant.
        """
        found = self._found.get(file)
        if found is None:
            return [], None
        self.used.add(file)
        if found.problem:
            raise InputError(found.problem)
        if len(found.written) > 1:
            raise InputError(f"{self.name} has several rows for it: {', '.join(map(printable, found.written[:3]))}")
        return found.captions, found.label

    @property
    def files(self) -> set[str]:
        """Files that it says something of."""
        return set(self._found)

    @property
    def of_several(self) -> list[str]:
        """Files of which only the name is given, which files in other folders have as well."""
        times_given = Counter(row for found in self._found.values() for row in found.rows_of_several)
        return [
            file for file, found in self._found.items() if any(times_given[row] > 1 for row in found.rows_of_several)
        ]

    def captions_of(self, file: str) -> list[str]:
        """Its captions of a file, usable or not."""
        return [one for one in self._found[file].captions if one] if file in self._found else []

    @property
    def spoken_of_in_parts(self) -> list[str]:
        """Whole files that have captions of several of their parts."""
        return [file for file, found in self._found.items() if found.parts > 1]

    def read(self) -> CaptionTable:
        """Read all rows. Raises InputError where the file is broken, or its columns name no file or say nothing."""
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
        """Keep what a row says of the files it fits; whether it fits any."""
        whole = any(match.is_whole for match in matches)
        if whole and not meaning.times:  # then a list is of other words for the same
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


class Named:
    """Things that are counted, and named as far as that is of use."""

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
        """How many, and the first few."""
        return f"{self.count} ({', '.join(list(self.names)[:3])}{', ...' if self.count > 3 else ''})"

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "names": self.names}


def _of_part(match: Match, meaning: Meaning, first: int) -> list[str] | None:
    """The captions that a row has for the part of a video that a file is; None where it speaks of other parts.

    `first` is the number that the files give to the first part.
    """
    if match.times is not None:
        for place, times in enumerate(meaning.times):
            if all(abs(one - other) < 0.5 for one, other in zip(times, match.times, strict=True)):
                return list(meaning.captions[place : place + 1] if len(meaning.times) > 1 else meaning.captions)
        return None
    if match.part is not None:
        place, count = match.part - first, len(meaning.captions)
        a_caption_each = meaning.listed and len(meaning.times) in (0, count)
        return [meaning.captions[place]] if a_caption_each and place < count else None
    return list(meaning.captions)


def is_caption_list(path: str | Path) -> bool:
    """Whether a file is called as one that holds a caption a line, beside another that holds a video a line."""
    return os.path.basename(path).lower() in _CAPTION_LISTS


def is_list_of_files(path: str | Path) -> bool:
    """Whether a file is called as one that holds the path of a video a line."""
    return os.path.basename(path).lower() in _FILE_LISTS


def _rows_of_lists(captions: Path) -> Iterator[Row]:
    """finetrainers' pair of files: the videos' paths in one, their captions in the other, line by line."""
    listed = sorted(path for path in captions.parent.iterdir() if is_list_of_files(path))
    if not listed:
        raise InputError(f"{captions}: beside it must lie the list of the videos it is of ({', '.join(_FILE_LISTS)})")
    files = listed[-1]  # the videos', where there is one of images too
    videos, texts = (read_text_file(path).removesuffix("\n").split("\n") for path in (files, captions))
    if not len(_without_blank_end(texts)) <= len(_without_blank_end(videos)) <= len(texts):
        raise InputError(
            f"{files} has {len(_without_blank_end(videos))} lines and {captions} has {len(_without_blank_end(texts))}: "
            "they must have as many, the caption of each video in the same line"
        )
    for number, (file, caption) in enumerate(zip(videos, texts, strict=False), start=1):
        if file.strip():
            yield Row(f"line {number}", {"file_name": file, "text": caption})


def _without_blank_end(lines: list[str]) -> list[str]:
    end = len(lines)
    while end and not lines[end - 1].strip():
        end -= 1
    return lines[:end]
