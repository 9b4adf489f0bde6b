"""`samples.jsonl`: everything that determines the videos of a samples folder, one row per file."""

from __future__ import annotations

import json
from pathlib import Path

from odvae.running.errors import InputError
from odvae.running.files import read_json_lines, write_text
from odvae.running.json_objects import JsonObject
from odvae.running.stage import Stage

SAMPLE_TABLE = "samples.jsonl"


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


def add_sample_rows(stage: Stage, added: dict[str, dict]) -> None:
    """Add rows (by file) to the table of the stage's folder, replacing those of the same files."""
    with stage.updating():
        rows: dict[str, dict] = {row["file"]: row for row in read_sample_rows(stage.folder)}
        rows |= added
        write_text(stage.folder / SAMPLE_TABLE, "".join(json.dumps(rows[file]) + "\n" for file in sorted(rows)))
