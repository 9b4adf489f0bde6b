"""Matching of table rows to the files of a folder, by path, name or id."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from odvae.running.text import normalize_unicode
from odvae.tables.cells import seconds

# Characters copied along with a path: blanks, quotes, byte order marks, direction marks.
_AROUND = ' \t\r\n"\xa0\ufeff\u200b\u200e\u200f\u202a\u202b\u202c\u2066\u2067\u2068\u2069'

# How well a row matches a file; lower is better, and only the best matches are used.
Fit = tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """A file that a row refers to, how well they match, and the file's part (number or times) of the row's video, if
    that is longer."""

    file: str
    fit: Fit
    part: int | None = None
    times: tuple[float, float] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the row describes the whole file."""
        return self.part is None and self.times is None


class FileIndex:
    """Index of the files of a folder, by the names that tables use for them.

    A row may have the path relative to the folder or to the table's folder, an absolute path, a path with the same end
    as the file's, the bare name, or an id that is the name without its extension; in any Unicode form, with slashes or
    backslashes. `ID_3`, `ID_segment_3` and `ID/3` are also found as ID, as parts of a longer video. If nothing matches,
    a name is tried as a URL, and as a number without its leading zeros.
    """

    def __init__(self, root: Path, files: Iterable[str], extensions: Iterable[str]) -> None:
        self.root, self.extensions = root, tuple(f".{extension}" for extension in extensions)
        self.resolved = _normal(str(root.resolve()))
        self.plain: dict[str, str] = {}  # file -> its path in the form in which paths are compared
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_number: dict[int, list[str]] = defaultdict(list)
        self._parts: dict[str, list[tuple[str, int | None, tuple[float, float] | None]]] = defaultdict(list)
        for file in files:
            plain = self.plain[file] = _normal(file)
            self._by_stem[_key(self._stem(plain))].append(file)
            if (number := _number(self._stem(plain))) is not None:
                self._by_number[number].append(file)
        only_ones = self._only_files()
        for file, plain in self.plain.items():
            for base, part, times in _as_part(plain, self._stem(plain), alone=file in only_ones):
                self._parts[_key(base)].append((file, part, times))

    def find(self, written: str, beside: str = "") -> list[Match]:
        """The files that a path, name or id in a table refers to: all that match equally well, and parts of its video.

        `beside` is the table's folder, relative to the index's root.
        """
        if found := self._find_path(_normal(written), beside):
            return found
        if ("%" in written or "://" in written) and (found := self._find_path(_normal(_without_url(written)), beside)):
            return found
        number = _number(written.strip())
        return [Match(file, (2, 0, 0, 0)) for file in self._by_number.get(number, ())] if number is not None else []

    def _find_path(self, path: str, beside: str) -> list[Match]:
        if not path:
            return []
        stem, has_extension = self._stem(path), path != self._stem(path)
        found = [
            Match(file, self._fit(path, has_extension, file, beside)) for file in self._by_stem.get(_key(stem), ())
        ]
        best = min((match.fit for match in found), default=())
        found = [match for match in found if match.fit == best]
        if "/" not in path and not has_extension:
            parts = self._parts.get(_key(path), ())
            found += [Match(file, (3, 0, 0, 0), part, times) for file, part, times in parts]
        return found

    def _fit(self, path: str, has_extension: bool, file: str, beside: str) -> Fit:
        """(case differs, extension differs or is missing, folder mismatch, minus number of equal trailing parts)"""
        plain = self.plain[file]
        if _key(path) != _key(plain) and self._stem(path).rpartition("/")[2] != self._stem(plain).rpartition("/")[2]:
            other_case = 1
        else:
            other_case = 0
        extension_differs = int(not has_extension or PurePosixPath(path).suffix != PurePosixPath(plain).suffix)
        ours, theirs = self._whole_stem(plain), self._whole_stem(path)
        exact = {ours, f"{self.resolved}/{ours}", f"{_normal(str(self.root))}/{ours}"}
        if theirs in exact or (beside and f"{_normal(beside)}/{theirs}" == ours):
            return (other_case, extension_differs, 0, 0)
        contained = f"/{theirs}".endswith(f"/{ours}") or f"/{ours}".endswith(f"/{theirs}")
        same = 0
        for one, other in zip(reversed(ours.split("/")), reversed(theirs.split("/")), strict=False):
            if one != other:
                break
            same += 1
        return (other_case, extension_differs, 1 if contained else 2, -same)

    def _stem(self, path: str) -> str:
        """The file name without folder and without a video's or image's extension."""
        name = path.rpartition("/")[2]
        return name[: -len(extension)] if (extension := self._extension(name)) else name

    def _whole_stem(self, path: str) -> str:
        return path[: -len(extension)] if (extension := self._extension(path)) else path

    def _extension(self, name: str) -> str:
        suffix = PurePosixPath(name).suffix
        return suffix if suffix.lower() in self.extensions else ""

    def _only_files(self) -> set[str]:
        """The files that are the only one in their folder."""
        by_folder: dict[str, list[str]] = defaultdict(list)
        for file in self.plain:
            by_folder[os.path.dirname(file)].append(file)
        return {files[0] for folder, files in by_folder.items() if folder and len(files) == 1}


_PART = r"(?:(?:segment|seg|clip|scene|part|shot)[_\-]?)?(?P<number>\d{1,9})$"
_NUMBERED = re.compile(rf"^(?P<base>.+?)[_\-.+]{_PART}", re.IGNORECASE)
_NUMBER_ALONE = re.compile(rf"^{_PART}", re.IGNORECASE)
_TIMED = re.compile(r"^(?P<base>.+?)[_](?P<start>\d[\d:.\-]*)[_](?:to[_])?(?P<end>\d[\d:.\-]*)$")


def _as_part(plain: str, stem: str, alone: bool) -> Iterator[tuple[str, int | None, tuple[float, float] | None]]:
    """(id of the longer video, number or None, times or None) of videos that a file may be a part of, by its name."""
    if timed := _TIMED.match(stem):
        start, end = seconds(timed["start"]), seconds(timed["end"])
        if start is not None and end is not None:
            yield timed["base"], None, (start, end)
    if numbered := _NUMBERED.match(stem):
        yield numbered["base"], int(numbered["number"]), None
    folder = plain.rpartition("/")[0].rpartition("/")[2]
    if folder and (number := _NUMBER_ALONE.match(stem)):
        yield folder, int(number["number"]), None
    elif folder and alone:
        yield folder, None, None


def _without_url(written: str) -> str:
    """The path in a URL, with unquoted characters: "https://x/my%20video.mp4?t=1" -> "x/my video.mp4"."""
    scheme, is_url, rest = written.strip().partition("://")
    if is_url and scheme.isalnum():
        written = re.split("[?#]", rest, maxsplit=1)[0]
    return unquote(written, errors="surrogateescape")


def _number(written: str) -> int | None:
    """The number that a name is, also as a float ("42.0"); None if it is not a number."""
    match = re.fullmatch(r"(\d{1,18})(?:\.0+)?", written, re.ASCII)
    return int(match[1]) if match else None


def _normal(path: str) -> str:
    """A path in the form in which paths are compared: NFC, slashes, no ./ and no empty parts."""
    path = normalize_unicode(path.strip(_AROUND)).replace("\\", "/").removeprefix("file://")
    absolute = path.startswith("/")
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return ("/" if absolute else "") + "/".join(parts)


def _key(name: str) -> str:
    return name.casefold()
