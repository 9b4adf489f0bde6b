"""Packing of videos and images with captions into WebDataset shards: KEY.mp4 KEY.txt KEY.json, as in video2dataset.

Every file is decoded once, in worker processes with time and memory limits. Files that cannot be read, are duplicates
or do not pass the filters are left out, counted and named, and so are all other files of the folder that are not used.
The key is a hash of the file's bytes, so equal names in different folders do not collide, and the same input gives the
same shards. A shard is complete when it appears; `unfinished.json` says that others are still to come.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from odvae.cluster.parts import Part
from odvae.packing.accepting import Captions, accepted, account_for_the_rest
from odvae.packing.captions import CaptionReader
from odvae.packing.examining import examine_files
from odvae.packing.journal import Journal
from odvae.packing.output import base_of, find_file, write_small
from odvae.packing.report import PackingReport, card_of, list_rejects, read_report
from odvae.packing.scenes import check_scene_detection
from odvae.packing.settings import PackingSettings
from odvae.packing.source_bucket import list_bucket
from odvae.packing.source_folder import SourceFolder, list_source, state_of
from odvae.packing.source_table import SourceTable
from odvae.packing.state import REPORT, STATE, PackingState, remove_state, states_in
from odvae.packing.writing import ShardWriter, index_folder
from odvae.running.commands import command_line
from odvae.running.errors import InputError
from odvae.shards.dataset_card import write_card
from odvae.shards.unfinished import UNFINISHED
from odvae.storage.files import download
from odvae.storage.mirror import errors_named
from odvae.storage.paths import is_remote, open_path, work_folder
from odvae.storage.whole_files import identity
from odvae.tables.columns import Columns
from odvae.tables.formats import table_kind
from odvae.tables.rows import column_name


def pack_folder(source: str | Path, out: str | Path, settings: PackingSettings | None = None) -> PackingReport:
    """Pack all videos and images below `source`, or in a table of URLs, into `out/00000.tar ...`.

    A shard appears when it is complete, `out/packing.json` when all are. Repeating the call resumes an interrupted
    packing, or returns the report of a complete one. With `settings.part` only a share is packed, and the shards' names
    begin with the part's; when all are packed, `odvae.packing.finishing.finish_parts` finishes the folder. Raises
    InputError if `source` is missing or has no usable file, or if `out` was not packed from this input.
    """
    root, out = open_path(source), open_path(out)
    chosen = settings or PackingSettings()
    with errors_named(base_of(out), out), errors_named(base_of(root), root):
        return _pack(root, out, chosen)


def _pack(root: Path, out: Path, settings: PackingSettings) -> PackingReport:
    part = settings.chosen_part
    state = PackingState(out, part).fetch()
    files, captions = open_source(root, out, settings, part, state.scratch)
    check_groups(root, files.own, settings)
    if settings.cut_scenes:
        check_scene_detection()
    identity = input_identity(files, files.own, captions, settings)
    if (report := finished_report(out, identity)) is not None:
        return report
    record = {
        "input": identity,
        "source": str(root if is_remote(root) else root.resolve()),
        "settings": settings.decisive(),
    }
    is_new = not is_remote(out) and not out.exists()
    state.check(record)
    if part and (report := state.read_report()) is not None and report.input == identity:
        return report
    captions.open()
    with state.writing(record, command_of(root, out, settings)):
        report = PackingReport(input=identity, part=str(part) if part else "")
        journal = Journal(state.journal, [settings.seconds_per_file, settings.memory_gib]).open()
        with contextlib.closing(journal), ShardWriter(files, settings, state, journal) as shards:
            examined = examine_files(files, settings, journal)
            shards.write(accepted(examined, captions, settings, report, on_rejected=files.release))
            report.shards, report.bytes = len(shards.names), shards.bytes
            if part:
                journal.write(files.own)
        if part:
            report.finish()
            state.finish_part(report)
            return report
        account_for_the_rest(files, captions, report)
        report.finish()
        if report.videos + report.images == 0:
            remove_state(out)
            if is_new:
                with contextlib.suppress(OSError):
                    out.rmdir()
            raise nothing_usable(root, files, report)
        write_results(root, out, settings, report)
    return report


def nothing_usable(root: Path, files: SourceFolder | SourceTable, report: PackingReport) -> InputError:
    """The error of a source of which no file can be used, with the reason of each."""
    return InputError(f"none of the {len(files.own)} files in {root} can be used:\n{list_rejects(report)}")


def write_results(root: Path, out: Path, settings: PackingSettings, report: PackingReport) -> None:
    """Write the index, card and report of `out`, whose shards are complete; then remove what only packing needs."""
    index_folder(out)
    write_card(out, card_of(report, command_of(Path(root.name), Path(out.name), settings)))
    write_small(out / REPORT, asdict(report))
    remove_state(out)


def open_source(
    root: Path, out: Path, settings: PackingSettings, part: Part | None, scratch: Path
) -> tuple[SourceFolder | SourceTable, Captions]:
    """List a folder, or read a table of URLs: the files, and what has their captions."""
    if table_kind(PurePosixPath(str(root))) is not None and (is_remote(root) or root.is_file()):
        if settings.captions is not None:
            raise InputError(f"captions={settings.captions}: {root} is a table, whose own captions are used")
        table = SourceTable(table_here(root), settings, part, scratch, root.parent)
        return table, table
    folder: SourceFolder
    if is_remote(root):
        folder = list_bucket(root, scratch / "source", settings, part, outputs=(out,))
    else:
        folder = list_source(root, outputs=(base_of(out),), part=part)
    file, text = (name and column_name(name) for name in (settings.file_column, settings.text_column))
    named = table_here(open_path(settings.captions)) if settings.captions else None
    return folder, CaptionReader(folder, named, Columns(file, text))


def table_here(path: Path) -> Path:
    """A table, or a copy of one at a URL, whose modification time is a number made of its version there."""
    if not is_remote(path):
        return path
    size, version = identity(path)
    copy = work_folder(path)
    if state_of(copy) != [size, version]:
        copy.parent.mkdir(parents=True, exist_ok=True)
        download(path, copy)
        os.utime(copy, ns=(version, version))
    return copy


def check_groups(source: Path, names: Sequence[str], settings: PackingSettings) -> None:
    """Raise InputError where `settings.groups` puts none of the files into a group."""
    if settings.groups is None or not names or any(map(settings.group_of, names)):
        return
    raise InputError(f"groups={settings.groups}: the expression is found in none of the {len(names)} paths in "
                     f"{source}, such as {names[0]}")  # fmt: skip


def input_identity(
    source: SourceFolder | SourceTable, names: Sequence[str], captions: Captions, settings: PackingSettings
) -> str:
    """A hash of everything that determines the shards of these files: names, sizes and modification times of all files
    that are read; settings. Of a URL, only its name is known."""
    digest = hashlib.sha256(settings.decisive_json().encode())
    tables = {captions.named} if isinstance(captions, CaptionReader) else set(captions.inputs_of(names))
    states = [(name, source.state(name)) for name in names]
    for path in captions.inputs_of(names):
        if path in tables:
            states.append((path.name, state_of(path)))
        else:
            name = os.fspath(path.relative_to(source.root))
            states.append((name, source.state(name)))
    for name, state in states:
        digest.update(os.fsencode(name))
        digest.update(b"\n" if state is None else f" {state[0]} {state[1]}\n".encode())
    return digest.hexdigest()


def finished_report(out: Path, identity: str) -> PackingReport | None:
    """The report of a finished folder, or of the folder that a part with this input belongs to; None if OUT is not
    finished. Raises InputError if it was packed from another input."""
    if (found := find_file(out / REPORT)) is None:
        return None
    report = read_report(found)
    if identity != report.input and identity not in report.parts:
        raise InputError(
            f"output folder {out} is not empty and was not packed from this input with these settings: choose another, "
            "or remove it"
        )
    if states_in(out) or (base_of(out) / STATE).exists() or find_file(out / UNFINISHED) is not None:
        remove_state(out)
    return report


def command_of(source: Path, out: Path, settings: PackingSettings, **changes: Any) -> str:
    """The command line with these settings; `changes` replace some, None removes one."""
    values = settings.model_dump(mode="json", exclude_defaults=True) | changes
    words = [f"{name}={_word(value)}" for name, value in values.items() if value is not None]
    paths = [str(path) for path in (source, out)]
    return " ".join([command_line("make_shards"), *map(shlex.quote, [*paths, *words])])


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
