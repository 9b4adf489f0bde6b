"""The results of a run, `report/report.json`. Each evaluation updates its own part of it."""

from __future__ import annotations

import sys
from collections.abc import Collection

from odvae.running.errors import InputError
from odvae.running.files import read_object, write_json
from odvae.running.json_objects import JsonObject
from odvae.running.resume_check import read_stage_record
from odvae.running.run_folder import RunFolder, code_version
from odvae.running.stage import RECORD, Stage
from odvae.storage.mirror import Choice, fetched
from odvae.storage.paths import is_remote, work_folder

STAGES = ("vae", "latents", "ldm", "samples", "report")


def fetched_run(folders: RunFolder, **choices: Choice) -> RunFolder:
    """The run folder on this machine: itself, or the working copies of one at a URL.

    Of a stage in `choices` they have the chosen files, of the others the record.
    """
    if not is_remote(folders.root):
        return folders
    for stage in STAGES:
        fetched(getattr(folders, stage), choices.get(stage, records))
    return RunFolder(work_folder(folders.root))


def records(names: Collection[str]) -> list[str]:
    """Of a stage's files the record."""
    return [name for name in names if name == RECORD]


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
