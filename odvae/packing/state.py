"""What a packing keeps in its output folder until the folder is finished, and whether a command may go on with it.

`OUT/unfinished.json` says that shards are still to come; the shards that are there are complete and may be used. What
a command needs to go on is in `OUT/.packing/whole`, or of part 3 of 8 in `OUT/.packing/3-of-8`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from odvae.cluster.parts import Part
from odvae.packing.journal import JOURNAL
from odvae.packing.report import PackingReport, read_report
from odvae.running.errors import InputError
from odvae.running.files import make_output_folder, read_json_lines, read_object, temporary_path, write_json, write_text
from odvae.running.folder_lock import sole_writer
from odvae.running.resume_check import differing_keys
from odvae.shards.facts_journal import INDEX_FOLDER, shard_index_path
from odvae.shards.unfinished import UNFINISHED

STATE = ".packing"
REPORT = "packing.json"

_WHOLE = "whole"


class PackingState:
    """The state of one command's packing; `part` None: of the whole source."""

    def __init__(self, out: Path, part: Part | None) -> None:
        self.out, self.part = out, part
        self.folder = out / STATE / (_WHOLE if part is None else f"{part.number}-of-{part.count}")
        self.prefix = "" if part is None else part.prefix
        self.journal = self.folder / JOURNAL
        self.scratch = self.folder / "scratch"
        self._record, self._report, self._shards = (
            self.folder / name for name in ("input.json", "report.json", "shards.jsonl")
        )

    def read_record(self) -> dict[str, Any] | None:
        """What was packed: `input`, `source`, `settings`. None if packing has not begun."""
        return read_object(self._record) if self._record.is_file() else None

    def read_report(self) -> PackingReport | None:
        """The report of a part that is complete."""
        return read_report(self._report) if self._report.is_file() else None

    def check(self, record: dict[str, Any]) -> None:
        """Raise InputError unless OUT is new or empty, or has an unfinished packing of the same kind, with which a
        command with this record may go on."""
        if not (self.out / STATE).is_dir():
            if self.out.exists() and any(self.out.iterdir()):
                raise InputError(
                    f"output folder {self.out} is not empty and was not packed from this input with these settings: "
                    "choose another, or remove it"
                )
            return
        for other in states_in(self.out):
            count, others = (None if one.part is None else one.part.count for one in (self, other))
            if count != others:
                raise InputError(
                    f"{self.out} is being packed {_as_parts(others)}, so it cannot be packed {_as_parts(count)} too: "
                    "go on as it was begun, choose another folder, or remove it"
                )
            before = other.read_record()
            if before is None:
                continue
            if other.folder != self.folder:
                _check_settings(other, before, record)
            elif before.get("input") != record["input"] and before.get("source") != record["source"]:
                raise InputError(
                    f"{self.out} is not finished and was not packed from {record['source']} but from "
                    f"{before.get('source')}: choose another folder, or remove it"
                )

    @contextlib.contextmanager
    def writing(self, record: dict[str, Any], command: str) -> Iterator[None]:
        """Within it this command is the only one that writes this packing. Raises InputError if another one does."""
        make_output_folder(self.out)
        with sole_writer(self.folder):
            if not (self.out / UNFINISHED).exists():
                what = "not finished: shards that are here are complete, others are still to come"
                write_json(self.out / UNFINISHED, {"make_shards": what, "to go on": command})
            before = self.read_record()
            if before is not None and before.get("input") != record["input"]:
                print(
                    "files or settings have changed since packing was stopped: what differs is packed again", flush=True
                )
                if before.get("settings", {}).get("cut_scenes") != record["settings"]["cut_scenes"]:
                    self.journal.unlink(missing_ok=True)
            self._report.unlink(missing_ok=True)
            write_json(self._record, record)
            remove_partial(self.out, self.prefix)
            yield

    def written_shards(self) -> dict[str, dict[str, Any]]:
        """Name -> record of each shard that this packing has written, or has begun to write."""
        rows = read_json_lines(self._shards) if self._shards.is_file() else []
        found: dict[str, dict[str, Any]] = {row["name"]: row for row in rows if isinstance(row.get("name"), str)}
        write_text(self._shards, "".join(f"{json.dumps(row)}\n" for row in found.values()))  # without a truncated line
        return found

    def note_shard(self, name: str, **facts: Any) -> None:
        """Write down that a shard will be written (without facts), or that it was."""
        with open(self._shards, "a") as file:
            file.write(json.dumps({"name": name, **facts}) + "\n")

    def remove_shard(self, name: str) -> None:
        """Remove a shard that this packing has written before its input changed."""
        (self.out / name).unlink(missing_ok=True)
        shard_index_path(self.out, name).unlink(missing_ok=True)

    def finish_part(self, report: PackingReport) -> None:
        write_json(self._report, asdict(report))
        shutil.rmtree(self.scratch, ignore_errors=True)


def states_in(out: Path) -> list[PackingState]:
    """The packings that were begun in a folder, in the order of their parts."""
    found = []
    for folder in (out / STATE).iterdir() if (out / STATE).is_dir() else ():
        if folder.name == _WHOLE:
            found.append(PackingState(out, None))
        elif match := re.fullmatch(r"(\d+)-of-(\d+)", folder.name):
            found.append(PackingState(out, Part(int(match[1]), int(match[2]))))
    return sorted(found, key=lambda one: (one.part.number if one.part else 0, one.folder.name))


def remove_state(out: Path) -> None:
    """Remove what packing has kept, once packing.json is written."""
    (out / UNFINISHED).unlink(missing_ok=True)
    shutil.rmtree(out / STATE, ignore_errors=True)


def remove_partial(out: Path, prefix: str) -> None:
    """Remove incomplete shards of killed commands; this one holds the lock, so no other command writes them."""
    example = temporary_path(out / "NAME").name
    assert example.startswith(".NAME.")
    assert example.endswith(".partial")
    for folder in (out, out / INDEX_FOLDER):
        for path in folder.glob(f".{prefix}*.partial"):
            if re.match(rf"\.{re.escape(prefix)}(?:[a-z]+-)?\d{{5,}}\.tar\.", path.name):
                path.unlink(missing_ok=True)


def _check_settings(other: PackingState, before: dict[str, Any], record: dict[str, Any]) -> None:
    differing = differing_keys(before.get("settings"), record["settings"])
    if differing:
        assert other.part is not None
        raise InputError(
            f"part {other.part} of {other.out} was packed with other settings; all parts need the same:\n"
            + "\n".join(f"  {key}: was {then!r}, now {now!r}" for key, (then, now) in differing.items())
        )


def _as_parts(count: int | None) -> str:
    return "by one command (without part=i/n)" if count is None else f"in {count} parts"
