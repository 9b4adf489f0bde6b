"""What a packing keeps in its output folder until the folder is finished, and whether a command may go on with it.

`OUT/unfinished.json` says that shards are still to come; the shards that are there are complete and may be used. What
a command needs to go on is in `OUT/.packing/whole`, or of part 3 of 8 in `OUT/.packing/3-of-8`; with OUT at a URL, a
working copy of it is on this machine, and uploaded before a shard is.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from odvae.cluster.parts import Part
from odvae.packing.journal import JOURNAL
from odvae.packing.output import base_of, find_file, is_empty, remove_file, remove_folder, remove_shard, write_small
from odvae.packing.report import PackingReport, read_report
from odvae.running.errors import InputError
from odvae.running.files import (
    append_text,
    make_output_folder,
    read_json_lines,
    read_object,
    temporary_path,
    write_json,
    write_text,
)
from odvae.running.folder_lock import sole_writer
from odvae.running.resume_check import differing_keys
from odvae.shards.facts_journal import INDEX_FOLDER
from odvae.shards.unfinished import UNFINISHED
from odvae.storage.mirror import Choice, Mirror, everything, warn_of_no_locks
from odvae.storage.paths import is_remote
from odvae.storage.trees import list_tree

STATE = ".packing"
REPORT = "packing.json"

_WHOLE = "whole"


class PackingState:
    """The state of one command's packing; `part` None: of the whole source."""

    def __init__(self, out: Path, part: Part | None) -> None:
        self.out, self.part = out, part
        name = _WHOLE if part is None else f"{part.number}-of-{part.count}"
        self.folder = base_of(out) / STATE / name
        self.mirror = Mirror(out / STATE / name) if is_remote(out) else None
        self.prefix = "" if part is None else part.prefix
        self.journal = self.folder / JOURNAL
        # Not in the working copy, all of which is uploaded.
        self.scratch = self.folder / "scratch" if self.mirror is None else self.folder.with_name(f"scratch-{name}")
        self._record, self._report, self._shards = (
            self.folder / name for name in ("input.json", "report.json", "shards.jsonl")
        )

    def fetch(self, choice: Choice = everything) -> PackingState:
        """Have the state here, of OUT at a URL; returns this object."""
        if self.mirror is not None:
            self.mirror.open(choice, to_read=True)
        return self

    def save(self) -> None:
        """Upload what has changed of the state, to OUT at a URL."""
        if self.mirror is not None:
            self.mirror.push()

    def read_record(self) -> dict[str, Any] | None:
        """What was packed: `input`, `source`, `settings`. None if packing has not begun."""
        return read_object(self._record) if self._record.is_file() else None

    def read_report(self) -> PackingReport | None:
        """The report of a part that is complete."""
        return read_report(self._report) if self._report.is_file() else None

    def check(self, record: dict[str, Any]) -> None:
        """Raise InputError unless OUT is new or empty, or has an unfinished packing of the same kind, with which a
        command with this record may go on."""
        others = states_in(self.out)
        if not others and (self.mirror is not None or not (self.out / STATE).is_dir()):
            if not is_empty(self.out):
                raise InputError(
                    f"output folder {self.out} is not empty and was not packed from this input with these settings: "
                    "choose another, or remove it"
                )
            return
        for other in others:
            count, begun = (None if one.part is None else one.part.count for one in (self, other))
            if count != begun:
                raise InputError(
                    f"{self.out} is being packed {_as_parts(begun)}, so it cannot be packed {_as_parts(count)} too: "
                    "go on as it was begun, choose another folder, or remove it"
                )
            before = other.fetch(_records).read_record()
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
        if self.mirror is None:
            make_output_folder(self.out)
        with sole_writer(self.folder):
            if self.mirror is not None:
                warn_of_no_locks(self.out)
                self.mirror.open(everything)
            if find_file(self.out / UNFINISHED) is None:
                what = "not finished: shards that are here are complete, others are still to come"
                write_small(self.out / UNFINISHED, {"make_shards": what, "to go on": command})
            before = self.read_record()
            if before is not None and before.get("input") != record["input"]:
                print(
                    "files or settings have changed since packing was stopped: what differs is packed again", flush=True
                )
                if before.get("settings", {}).get("cut_scenes") != record["settings"]["cut_scenes"]:
                    self.journal.unlink(missing_ok=True)
            self._report.unlink(missing_ok=True)
            write_json(self._record, record)
            if self.mirror is None:
                remove_partial(self.out, self.prefix)
            self.save()
            try:
                yield
            except (KeyboardInterrupt, InputError):
                with contextlib.suppress(InputError):  # what was found in files need not be found again
                    self.save()
                raise

    def shard_sizes(self) -> Callable[[str], int | None]:
        """What gives the size of a shard of OUT by its name; None where it is not there."""
        if self.mirror is None:
            return lambda name: (self.out / name).stat().st_size if (self.out / name).is_file() else None
        there = list_tree(self.out)
        return lambda name: there[name].size if name in there else None

    def written_shards(self) -> dict[str, dict[str, Any]]:
        """Name -> record of each shard that this packing has written, or has begun to write."""
        rows = read_json_lines(self._shards) if self._shards.is_file() else []
        found: dict[str, dict[str, Any]] = {row["name"]: row for row in rows if isinstance(row.get("name"), str)}
        write_text(self._shards, "".join(f"{json.dumps(row)}\n" for row in found.values()))  # without a truncated line
        return found

    def note_shard(self, name: str, **facts: Any) -> None:
        """Write down that a shard will be written (without facts), or that it was."""
        append_text(self._shards, json.dumps({"name": name, **facts}) + "\n")

    def remove_shard(self, name: str) -> None:
        """Remove a shard that this packing has written before its input changed."""
        remove_shard(self.out, name)

    def finish_part(self, report: PackingReport) -> None:
        write_json(self._report, asdict(report))
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.save()


def states_in(out: Path) -> list[PackingState]:
    """The packings that were begun in a folder, in the order of their parts."""
    found = []
    if is_remote(out):
        names = {name.partition("/")[0] for name in list_tree(out / STATE)}
    else:
        names = {folder.name for folder in (out / STATE).iterdir()} if (out / STATE).is_dir() else set()
    for name in names:
        if name == _WHOLE:
            found.append(PackingState(out, None))
        elif match := re.fullmatch(r"(\d+)-of-(\d+)", name):
            found.append(PackingState(out, Part(int(match[1]), int(match[2]))))
    return sorted(found, key=lambda one: (one.part.number if one.part else 0, one.folder.name))


def remove_state(out: Path) -> None:
    """Remove what packing has kept, once packing.json is written."""
    remove_file(out / UNFINISHED)
    remove_folder(out, STATE)


def _records(names: Collection[str]) -> list[str]:
    return [name for name in names if name.endswith(".json")]


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
