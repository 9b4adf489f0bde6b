"""Finishing of a folder that was packed in parts: which are missing, what several have, one report and one index."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from odvae.cluster.parts import part_of
from odvae.packing.accepting import Captions, accepted, account_for_the_rest
from odvae.packing.journal import Examined, examined_in, read_rows_in_order
from odvae.packing.output import base_of, find_file
from odvae.packing.packing import (
    command_of,
    finished_report,
    input_identity,
    nothing_usable,
    open_source,
    write_results,
)
from odvae.packing.report import PackingReport, read_report
from odvae.packing.scenes import check_scene_detection
from odvae.packing.settings import PackingSettings
from odvae.packing.source_folder import SourceFolder
from odvae.packing.source_table import SourceTable
from odvae.packing.state import REPORT, STATE, PackingState, states_in
from odvae.running.errors import InputError
from odvae.running.folder_lock import sole_writer
from odvae.running.resume_check import differing_keys
from odvae.running.text import counted, printable
from odvae.storage.paths import open_path

# Commands of missing parts that are listed.
_SHOWN = 100


def finish_parts(source: str | Path, out: str | Path, settings: PackingSettings) -> PackingReport:
    """Finish `out`, whose parts were all packed from `source`: its index and `packing.json`.

    The report is that of one command that packs everything part by part. What several parts have is used from the
    first of them; the other copies stay in their shards and are left out of the index. Raises InputError with the parts
    that are missing, or were packed from other files or with other settings, and with their commands.
    """
    root, out = open_path(source), open_path(out)
    states = states_in(out)
    scratch = base_of(out) / STATE / "none"
    if not states and find_file(out / REPORT) is not None:
        files, captions = open_source(root, out, settings, None, scratch)
        report = finished_report(out, _joined(_identities(files, captions, settings, _count_of(out))))
        assert report is not None
        return report
    if not states:
        example = command_of(root, out, settings, finish=None, part="1/N")
        raise InputError(f"{out} has no parts to finish: pack each of N parts first, as {example}")
    if states[0].part is None:
        raise InputError(f"{out} is not packed in parts: run {command_of(root, out, settings, finish=None)}")
    if settings.cut_scenes:
        check_scene_detection()
    files, captions = open_source(root, out, settings, None, scratch)
    for state in states:
        state.fetch()
    identities = _identities(files, captions, settings, states[0].part.count)
    _check_parts(states, identities, root, out, settings)
    if (report := finished_report(out, _joined(identities))) is not None:
        return report
    captions.open()
    with sole_writer(base_of(out) / STATE, lock=base_of(out) / STATE / ".finish.lock"):
        report = PackingReport(input=_joined(identities), parts=identities)
        for _ in accepted(_examined(files, states), captions, settings, report):
            pass
        for state in states:
            part_report = state.read_report()
            assert part_report is not None
            report.shards += part_report.shards
            report.bytes += part_report.bytes
        account_for_the_rest(files, captions, report)
        report.finish()
        if report.videos + report.images == 0:
            raise nothing_usable(root, files, report)
        write_results(root, out, settings, report)
    return report


def _count_of(out: Path) -> int:
    """The number of parts of a finished folder."""
    found = find_file(out / REPORT)
    assert found is not None
    return max(1, len(read_report(found).parts))


def _identities(
    files: SourceFolder | SourceTable, captions: Captions, settings: PackingSettings, count: int
) -> list[str]:
    """The identity of each part's input."""
    names: list[list[str]] = [[] for _ in range(count)]
    for name in files.own:
        names[part_of(name, count) - 1].append(name)
    return [input_identity(files, of_part, captions, settings) for of_part in names]


def _joined(identities: list[str]) -> str:
    return sha256(" ".join(identities).encode()).hexdigest()


def _check_parts(
    states: list[PackingState], identities: list[str], root: Path, out: Path, settings: PackingSettings
) -> None:
    """Raise InputError with the commands of the parts that are missing or were packed from another input."""
    by_number = {state.part.number: state for state in states if state.part is not None}
    lines = []
    for number, identity in enumerate(identities, start=1):
        state = by_number.get(number)
        report = state.read_report() if state is not None else None
        if report is not None and report.input == identity:
            continue
        command = command_of(root, out, settings, finish=None, part=f"{number}/{len(identities)}")
        lines.append(f"  {_problem(state, report, settings)}: {command}")
    if lines:
        more = f"\n  ... and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise InputError(
            f"{out} cannot be finished: {counted(len(lines), 'part')} of {len(identities)} must be run first\n"
            + "\n".join(lines[:_SHOWN])
            + more
        )


def _problem(state: PackingState | None, report: PackingReport | None, settings: PackingSettings) -> str:
    if state is None:
        return "was not begun"
    record = state.read_record() or {}
    if differing := differing_keys(record.get("settings"), settings.decisive()):
        named = ", ".join(f"{key}={before!r}, now {now!r}" for key, (before, now) in differing.items())
        return f"was packed with other settings ({named})"
    return "is not complete" if report is None else "was packed before files changed"


def _examined(files: SourceFolder | SourceTable, states: list[PackingState]) -> Iterator[Examined]:
    """What the parts have found in their files, part by part."""
    count = len(states)
    names: list[list[str]] = [[] for _ in range(count)]
    for name in files.own:
        names[part_of(name, count) - 1].append(name)
    for state, of_part in zip(states, names, strict=True):
        rows = read_rows_in_order(state.journal)
        for name in of_part:
            row = next(rows, None)
            if row is None or row["name"] != name:
                found = "nothing" if row is None else printable(row["name"])
                raise InputError(
                    f"{state.journal} has {found} in place of {printable(name)}: remove {state.folder}, and run its "
                    "part again"
                )
            yield from examined_in(row)
