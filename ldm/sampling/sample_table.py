"""`samples.jsonl`: everything that determines the videos of a samples folder, one row per file."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ldm.sampling.settings import SampleSettings
from odvae.running.errors import InputError
from odvae.running.files import read_json_lines, write_text
from odvae.running.json_objects import JsonObject
from odvae.running.stage import Stage

SAMPLE_TABLE = "samples.jsonl"

# Entries of a row that may differ between a video and one that is the same.
_CIRCUMSTANCES = {"device", "threads", "torch", "commit", "version"}

_SECONDS_BETWEEN_WRITES = 5.0  # each write is of the whole table


def read_sample_rows(folder: Path) -> list[JsonObject]:
    """The rows of a samples folder; none where there is no table. Raises InputError for a table of version 0.1."""
    path = folder / SAMPLE_TABLE
    rows = read_json_lines(path) if path.is_file() else []
    for row in rows:
        row.text("file")
        if "lossless" in row:
            row.text("lossless")
    if any("guidance" in row and "guidance_scale" not in row for row in rows):
        raise InputError(
            f"{path} was written by version 0.1 (its `steps` is now `num_inference_steps`, its `guidance` "
            f"`guidance_scale`), and nothing in it was changed: move {folder} away and sample again, or score it with "
            "version 0.1 (docs/changes.md)"
        )
    return rows


def lossless_file(path: Path) -> Path:
    """The lossless file of an mp4 of the table."""
    return path.with_suffix(".mkv")


def made_before(folder: Path, rows: Mapping[str, dict], settings: SampleSettings) -> set[str]:
    """Those of the files that are in the folder, made by what the new rows (by file) say."""
    before = {row["file"]: row for row in read_sample_rows(folder)}
    made = set()
    for file, row in rows.items():
        written = [folder / file, *([folder / row["lossless"]] if "lossless" in row else [])]
        written += [(folder / file).with_suffix(".gif")] if settings.gif else []
        same = _determining(before.get(file, {})) == _determining(json.loads(json.dumps(row)))
        if same and all(path.is_file() for path in written):
            made.add(file)
    return made


def _determining(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a row without those that say where and by which version it was made."""
    return {name: value for name, value in row.items() if name not in _CIRCUMSTANCES}


class SampleTable:
    """Adds rows to the table of a stage's folder while its videos are written, in place of those of the same files.

    They are written every few seconds and at the end, so a stopped command knows what it has made. All ranks may write.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._added: dict[str, dict] = {}
        self._written = time.monotonic()

    def __enter__(self) -> SampleTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def add(self, row: dict) -> None:
        """Add the row of a video that has been written."""
        self._added[row["file"]] = row
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.write()

    def forget(self, files: Collection[str]) -> None:
        """Remove the rows of videos that will be made again: a command that is killed leaves none of another video."""
        with self.stage.updating():
            rows = {row["file"]: row for row in read_sample_rows(self.stage.folder)}
            kept = {file: row for file, row in rows.items() if file not in files}
            if len(kept) < len(rows):
                self._replace(kept)

    def write(self) -> None:
        """Write what was added."""
        if self._added:
            with self.stage.updating():
                rows: dict[str, dict] = {row["file"]: row for row in read_sample_rows(self.stage.folder)}
                self._replace(rows | self._added)
        self._added, self._written = {}, time.monotonic()

    def _replace(self, rows: Mapping[str, dict]) -> None:
        """Write the table anew, sorted by file."""
        write_text(self.stage.folder / SAMPLE_TABLE, "".join(json.dumps(rows[file]) + "\n" for file in sorted(rows)))
