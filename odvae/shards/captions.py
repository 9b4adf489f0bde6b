"""Captions and class names of video files, in the forms in which data sets come.

| form | where | columns |
|---|---|---|
| text file | KEY.txt beside KEY.mp4 | |
| Hugging Face | metadata.jsonl, metadata.csv | file_name, text |
| Open-Sora | captions.csv, or any CSV that is named | path, text |
| Open-Sora-Plan | captions.json, or any JSON list that is named | path, cap (a text or a list, whose first counts) |
| UCF101, Kinetics | CLASS/KEY.avi | the folder's name is the class |

A table may also have a class (label, class or class_name) beside the caption or instead of it.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from odvae.running.errors import InputError

TABLES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv", "captions.json")
_FILE_COLUMNS = ("file_name", "path", "video", "video_path", "file")
_TEXT_COLUMNS = ("text", "caption", "cap")
_CLASS_COLUMNS = ("label", "class", "class_name")


@dataclass(frozen=True)
class Description:
    """What is said of one video."""

    caption: str = ""
    label: str | None = None


class CaptionTable:
    """The rows of a caption table, found by a video's path.

    A row names its video relative to the source folder, by an absolute path, by the end of a longer path, or by the
    bare file name where only one row has that. Where a video has several rows the first counts.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self.path, self.source = path, source
        self.rows: dict[str, Description] = {}
        self.by_file_name: dict[str, list[str]] = {}
        self.used: set[str] = set()
        for number, row in enumerate(_read_rows(path), start=1):
            file, description = self._parse(row, number)
            if file not in self.rows:
                self.rows[file] = description
                self.by_file_name.setdefault(PurePosixPath(file).name, []).append(file)

    def find(self, name: str) -> Description:
        """The row of the video at `name` below the source folder; an empty description where there is none.

        Raises InputError where the row is not UTF-8, or several rows could be meant.
        """
        file = self._match(name)
        if file is None:
            return Description()
        self.used.add(file)
        description = self.rows[file]
        if any("\udc80" <= character <= "\udcff" for character in description.caption + (description.label or "")):
            raise InputError(f"its row in {self.path.name} is not UTF-8")
        return description

    @property
    def unused(self) -> int:
        """Rows that no video was found for."""
        return len(self.rows) - len(self.used)

    def _match(self, name: str) -> str | None:
        for exact in (name, str(self.source / name), str((self.source / name).resolve())):
            if exact in self.rows:
                return exact
        same_name = self.by_file_name.get(PurePosixPath(name).name, [])
        others = [file for file in same_name if not (self.source / file).is_file()]  # not another video's own row
        ends = [file for file in others if f"/{file}".endswith(f"/{name}") or f"/{name}".endswith(f"/{file}")]
        candidates = ends or others
        if len(candidates) > 1:
            raise InputError(f"{self.path.name} has several rows for it: {', '.join(candidates[:3])}")
        return candidates[0] if candidates else None

    def _parse(self, row: Any, number: int) -> tuple[str, Description]:
        row = row if isinstance(row, dict) else {}
        file = next((row[column] for column in _FILE_COLUMNS if row.get(column)), None)
        text = next((row[column] for column in _TEXT_COLUMNS if row.get(column) is not None), None)
        label = next((row[column] for column in _CLASS_COLUMNS if row.get(column) is not None), None)
        if isinstance(text, list):
            text = text[0] if text else ""
        if not isinstance(file, str) or (text is None and label is None) or not isinstance(text, str | None):
            raise InputError(
                f"{self.path}, row {number}: needs a file column ({', '.join(_FILE_COLUMNS)}) and a text column "
                f"({', '.join(_TEXT_COLUMNS)}) or a class column ({', '.join(_CLASS_COLUMNS)}), found "
                f"{', '.join(map(str, row)) or 'no columns'}"
            )
        return file.removeprefix("./"), Description(_one_line(text or ""), None if label is None else str(label))


def find_table(source: Path) -> Path | None:
    """The caption table of a folder, by its usual names; None where there is none."""
    return next((source / name for name in TABLES if (source / name).is_file()), None)


def caption_beside(video: Path) -> Description:
    """The caption in the .txt beside a video; empty where there is none. Raises InputError where it is not UTF-8."""
    text = video.with_suffix(".txt")
    if not text.is_file():
        return Description()
    try:
        return Description(_one_line(text.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError as error:
        raise InputError(f"its caption {text.name} is not UTF-8 ({error.reason} at byte {error.start})") from None


def _read_rows(path: Path) -> list[Any]:
    # What is not UTF-8 is kept as a mark, so that one bad row costs one video.
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"caption table {path}: allowed are .jsonl, .csv and .json")
    lines = text.split("\n") if path.suffix == ".jsonl" else [text]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            where = f", line {number}" if path.suffix == ".jsonl" else ""
            raise InputError(f"{path}{where} is not valid JSON: {error}") from None
    if path.suffix == ".json":
        if len(rows) != 1 or not isinstance(rows[0], list):
            raise InputError(f"{path}: expected a list of objects with path and cap")
        return rows[0]
    return rows


def _one_line(text: str) -> str:
    return " ".join(text.split())
