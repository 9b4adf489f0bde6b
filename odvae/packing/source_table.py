"""A table of URLs or paths, with captions, as the source of a packing: CSV, JSON lines, Parquet and the like.

A row has the URL of a video or image, or its path, absolute or relative to the table's folder; its caption, its class,
and other columns, which are kept in the sample's .json. Rows of one URL are one sample with several captions.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odvae.cluster.parts import Part
from odvae.packing.fetching import NOT_DOWNLOADED, FetchLimits, fetch, is_url, partial_path
from odvae.packing.pools import open_pool
from odvae.packing.settings import PackingSettings
from odvae.packing.source_folder import extension_of, member_kind, state_of
from odvae.packing.texts_beside import Description
from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.running.text import counted, printable, valid_unicode, why_no_file
from odvae.shards.captions import each_once
from odvae.storage.paths import is_remote
from odvae.tables.cells import text_of
from odvae.tables.columns import Columns, Meaning, choose, url_column
from odvae.tables.formats import read_table
from odvae.tables.rows import column_name, is_empty

# Why a row is not packed.
NO_URL = "a row without a URL or path"

# Bytes of a file's name in the scratch folder that come from the hash of its URL.
_NAME_BYTES = 16


@dataclass
class _Video:
    """What the rows of a URL have."""

    where: str
    captions: list[str] = field(default_factory=list)
    label: str | None = None
    is_text: bool = True
    others: dict[str, Any] = field(default_factory=dict)
    """The first row's other cells."""


class SourceTable:
    """The files that a table names; those of a `part` only. It has their captions too.

    Downloads lie in `scratch` until the shard with them is written: at most about as many as three shards have samples
    (with Ray, ten), and twice the number of simultaneous downloads and examined files.
    """

    def __init__(
        self, table: Path, settings: PackingSettings, part: Part | None, scratch: Path, root: Path | None = None
    ) -> None:
        """`root`: the folder of relative paths, or its URL; the table's where it is None."""
        self.table, self.root, self.scratch = table, table.parent if root is None else root, scratch
        file, text = (name and column_name(name) for name in (settings.file_column, settings.text_column))
        self.columns = Columns(file, text)
        self.part = part
        self.rows = self.repeated = self.with_times = 0
        self.without: dict[str, str] = {}
        """Rows without a URL or path, and what they have."""
        self._videos: dict[str, _Video] = {}
        self._read()
        self.own = sorted(self._videos, key=lambda name: (member_kind(name) != "mp4", member_kind(name)))

    @property
    def media(self) -> list[str]:
        return self.own

    def open(self) -> None:
        """The table has been read."""

    def path(self, name: str) -> Path:
        """The file of a URL once it is downloaded, or the file of a path."""
        if is_url(name):
            digest = hashlib.sha256(os.fsencode(name)).hexdigest()[: 2 * _NAME_BYTES]
            extension = extension_of(name)
            return self.scratch / (f"{digest}.{extension}" if extension.isalnum() else digest)
        return self.root / name.removeprefix("file://")

    def state(self, name: str) -> list[int | str] | None:
        """Size and modification time of a file; None of a URL."""
        return None if is_url(name) else state_of(self.path(name))

    def prepare(self, names: Iterable[str], settings: PackingSettings) -> Iterator[tuple[str, Path | Failure]]:
        """Each of the names with its file, downloaded if it is a URL, or the reason why there is none; in order."""
        limits = FetchLimits(settings.download_seconds, settings.download_retries, int(settings.largest_mib * 2**20))
        waiting: deque[tuple[str, int | None]] = deque()
        ahead = 2 * settings.downloads
        self.scratch.mkdir(parents=True, exist_ok=True)
        with open_pool(functools.partial(fetch, limits), settings, settings.downloads, cpus=0.1) as pool:

            def finish() -> tuple[str, Path | Failure]:
                name, ticket = waiting.popleft()
                path = self.path(name)
                if ticket is None:
                    problem = why_no_file(path)
                    return name, Failure(f"{printable(name)} {problem}") if problem else path
                result = pool.result(ticket)
                if not isinstance(result, Failure):
                    return name, path
                partial_path(path).unlink(missing_ok=True)  # of a download that was ended by its time limit
                if result.reason.startswith(NOT_DOWNLOADED):
                    return name, result
                return name, Failure(f"{NOT_DOWNLOADED}: {result.reason}", result.cause)

            for name in names:
                waiting.append((name, pool.submit((name, self.path(name))) if is_url(name) else None))
                if len(waiting) > ahead:
                    yield finish()
            while waiting:
                yield finish()

    def release(self, name: str) -> None:
        """Remove a download, which is in a shard, or in none."""
        if is_url(name):
            self.path(name).unlink(missing_ok=True)

    def inputs_of(self, _names: Sequence[str]) -> list[Path]:
        return [self.table]

    def find(self, name: str) -> Description:
        """The captions and the class of a file. Raises InputError if they are not UTF-8."""
        video = self._videos[name]
        if not video.is_text:
            raise InputError(f"its row in {self.table.name}, {video.where}, is not UTF-8")
        return Description(each_once(video.captions), video.label)

    def others(self, name: str) -> dict[str, Any]:
        """The other columns of a file's first row."""
        return self._videos[name].others

    def left_over(self) -> Iterator[tuple[str, str, str]]:
        """The rows that name no file: (name, reason, details)."""
        for where, found in self.without.items():
            yield f"{self.table.name}, {where}", NO_URL, found

    def describe_tables(self) -> list[dict[str, Any]]:
        nothing: dict[str, Any] = {"count": 0, "names": {}}
        return [
            {
                "name": valid_unicode(self.table.name),
                "columns": dict(self._text_columns),
                "rows": self.rows,
                "videos": len(self._videos),
                "rows_without_video": {"count": len(self.without), "names": self.without},
                "rows_without_caption": nothing,
                "captions_not_used": nothing,
            }
        ]

    @property
    def notes(self) -> list[str]:
        notes = []
        if self.repeated:
            notes.append(
                f"{self.table.name}: {counted(self.repeated, 'row')} with the URL of an earlier row; each URL is one "
                "sample, with the captions of all its rows"
            )
        if self.with_times:
            notes.append(
                f"{self.table.name}: {counted(self.with_times, 'row')} with times of a part of a longer video; the "
                "whole videos are packed"
            )
        return notes

    def _read(self) -> None:
        self._text_columns: dict[str, int] = {}
        columns: Columns | None = None
        for row in read_table(self.table, self._are_known):
            if columns is None:
                columns = self._choose_columns(list(row.cells))
            self.rows += 1
            meaning = columns.read(row.cells)
            if not meaning.files:
                self.without[row.where] = "names no file"
            elif self.part is None or self.part.has(self._full_name(meaning.files[0])):
                self._add(row.where, row.cells, meaning, columns)
        if columns is None:
            raise InputError(f"{self.table} has no rows")
        if not self._videos and self.part is None:
            raise InputError(f"none of the {self.rows} rows of {self.table} names a file")

    def _full_name(self, file: str) -> str:
        """A file's URL, or its path; of a path in a table at a URL the URL."""
        return f"{self.root}/{file}" if is_remote(self.root) and not is_url(file) else file

    def _are_known(self, names: Sequence[str]) -> bool:
        return self.columns.are_known(names) or (self.columns.file is None and url_column(names) is not None)

    def _choose_columns(self, names: list[str]) -> Columns:
        """The columns that are read: of those of files, one of URLs is preferred."""
        chosen = Columns(self.columns.file or url_column(names), self.columns.text)
        if not choose(tuple(names), chosen.file, chosen.text).files:
            wanted = (
                f"the column {self.columns.file!r} (file_column)"
                if self.columns.file
                else ("a column of URLs or paths (url, video_url, video, path, ..., or another with file_column=NAME)")
            )
            raise InputError(f"{self.table} needs {wanted}, found {', '.join(names) or 'no columns'}")
        return chosen

    def _add(self, where: str, cells: dict[str, Any], meaning: Meaning, columns: Columns) -> None:
        name = self._full_name(meaning.files[0])
        video = self._videos.get(name)
        self.repeated += video is not None
        self.with_times += bool(meaning.times)
        if video is None:
            used = choose(tuple(cells), columns.file, columns.text)
            used_names = {*used.files, *meaning.text_columns, *used.labels}
            video = self._videos[name] = _Video(where, others=dict(_scalars(cells, used_names)))
        video.captions += meaning.captions
        video.label = meaning.label if video.label is None else video.label
        video.is_text &= meaning.is_text
        for column in meaning.text_columns:
            self._text_columns[column] = self._text_columns.get(column, 0) + 1


def _scalars(cells: dict[str, Any], used: set[str]) -> Iterator[tuple[str, Any]]:
    """The cells of other columns that JSON has: texts, numbers, booleans."""
    for name, cell in cells.items():
        cell = text_of(cell)
        if name in used or is_empty(cell) or (isinstance(cell, float) and not math.isfinite(cell)):
            continue
        if isinstance(cell, str | int | float | bool):
            yield valid_unicode(name), valid_unicode(cell) if isinstance(cell, str) else cell
