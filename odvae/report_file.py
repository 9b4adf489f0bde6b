"""The results of a run, `report/report.json`. Each evaluation updates its own part of it."""

from __future__ import annotations

import sys

from odvae.running.errors import InputError
from odvae.running.files import read_object, write_json
from odvae.running.json_objects import JsonObject
from odvae.running.resume_check import read_stage_record
from odvae.running.run_folder import RunFolder, code_version
from odvae.running.stage import RECORD, Stage

STAGES = ("vae", "latents", "ldm", "samples", "report")


def update_report(folders: RunFolder, stage: Stage, parts: dict) -> None:
    """Add or replace parts of report.json, with the command and commit that made them, and update all stages' minutes.

    Call it on the main process, within `stage.updating()`.
    """
    stage.record()
    source = {"command": " ".join(sys.argv), "commit": code_version()["commit"]}
    report = read_report(folders)
    report |= {name: {**part, **source} if isinstance(part, dict) else part for name, part in parts.items()}
    report["minutes"] = {
        stage: read_stage_record(getattr(folders, stage) / RECORD)["minutes"]
        for stage in STAGES
        if (getattr(folders, stage) / RECORD).is_file()
    }
    report |= code_version()
    write_json(folders.report / "report.json", report)


def read_report(folders: RunFolder) -> JsonObject:
    """The content of report.json; empty before the first evaluation. Raises InputError for a file of version 0.1."""
    path = folders.report / "report.json"
    report = read_object(path) if path.is_file() else JsonObject({}, path)
    reconstruction = report.get("reconstruction") or {}
    if not isinstance(reconstruction, dict):
        raise InputError(f"{path} was damaged: reconstruction is {reconstruction!r:.100}; remove it and evaluate again")
    if "ways" in reconstruction:
        raise InputError(
            f"{path} was written by version 0.1 (its `ways` is now `modes`) and was not changed: move "
            f"{folders.report} away and evaluate again (docs/changes.md)"
        )
    return report
