"""Packing of videos and images with captions into WebDataset shards: KEY.mp4 KEY.txt KEY.json, as in video2dataset.

Every file is decoded once, in worker processes with time and memory limits. Files that cannot be read, are duplicates
or do not pass the filters are left out, counted and named, and so are all other files of the folder that are not used.
The key is a hash of the file's bytes, so equal names in different folders do not collide, and the same input gives the
same shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from odvae.packing.captions import NOT_TAKEN, CaptionReader
from odvae.packing.examining import JOURNAL, Examined, examine_files
from odvae.packing.report import PackingReport, list_rejects, read_report
from odvae.packing.scenes import check_scene_detection, cut_scene
from odvae.packing.settings import PackingSettings
from odvae.packing.source_folder import SourceFolder, list_source, member_kind
from odvae.packing.texts_beside import Description
from odvae.running.account import BAD_CAPTION, COPY, NOT_A_FILE, UNREADABLE
from odvae.running.errors import InputError
from odvae.running.files import make_output_folder, read_json, write_json
from odvae.running.folder_lock import LOCK, sole_writer
from odvae.running.text import printable, valid_unicode
from odvae.shards.tars import shard_writer
from odvae.tables.columns import Columns
from odvae.tables.rows import column_name

REPORT = "packing.json"


def pack_folder(source: str | Path, out: str | Path, settings: PackingSettings | None = None) -> PackingReport:
    """Pack all videos and images below `source` into `out/00000.tar ...`; `out` appears when it is complete.

    Repeating the call resumes an interrupted packing, or returns the report of a complete one. Raises InputError if
    `source` is missing or has no usable file, or if `out` was not packed from this input.
    """
    root, out, settings = Path(source), Path(out), settings or PackingSettings()
    aside = out.parent / f".{out.name}.packing"
    folder = list_source(root, outputs=(out, aside))
    captions = _caption_reader(folder, settings)
    if settings.cut_scenes:
        check_scene_detection()
    identity = _input_identity(folder, captions, settings)
    if out.exists() and any(out.iterdir()):
        if (out / REPORT).is_file() and (report := read_report(out / REPORT)).input == identity:
            return report
        raise InputError(
            f"output folder {out} is not empty and was not packed from this input with these settings: choose another, "
            "or remove it"
        )
    captions.open()
    make_output_folder(out.parent)
    with sole_writer(aside):
        _start_over_unless_same_input(aside, identity)
        report = PackingReport(input=identity)
        _write_shards(folder, captions, settings, aside, report)
        _account_for_the_rest(folder, captions, report)
        report.bytes = sum(shard.stat().st_size for shard in aside.glob("*.tar"))
        report.finish()
        if report.videos + report.images == 0:
            raise InputError(f"none of the {len(folder.media)} files in {root} can be used:\n{list_rejects(report)}")
        write_json(aside / REPORT, asdict(report))
        for name in (JOURNAL, "input.json", LOCK):
            (aside / name).unlink()
        if out.exists():
            out.rmdir()
        aside.rename(out)
    return report


def _caption_reader(folder: SourceFolder, settings: PackingSettings) -> CaptionReader:
    file, text = (name and column_name(name) for name in (settings.file_column, settings.text_column))
    return CaptionReader(folder, Path(settings.captions) if settings.captions else None, Columns(file, text))


def _input_identity(folder: SourceFolder, captions: CaptionReader, settings: PackingSettings) -> str:
    """A hash of everything that determines the shards: names, sizes and modification times of all files; settings."""
    digest = hashlib.sha256(settings.model_dump_json(exclude={"workers", "seconds_per_file", "memory_gib"}).encode())
    for path in [*(folder.root / name for name in folder.media), *captions.inputs]:
        name = path.name if path == captions.named else path.relative_to(folder.root)
        digest.update(os.fsencode(name))
        digest.update(f" {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _start_over_unless_same_input(aside: Path, identity: str) -> None:
    path = aside / "input.json"
    if path.is_file() and read_json(path) != identity:
        print("files or settings have changed since packing was stopped: starting over", flush=True)
        for old in aside.iterdir():
            if old.name != LOCK:
                old.unlink()
    write_json(path, identity)


def _write_shards(
    folder: SourceFolder, captions: CaptionReader, settings: PackingSettings, out: Path, report: PackingReport
) -> None:
    """Write the shards that do not exist yet; which sample is in which shard is a function of the files."""
    samples = _accepted(folder, captions, settings, out, report)
    kind_counts: dict[str, int] = {}
    sample = next(samples, None)
    while sample is not None:
        kind = member_kind(sample.name)
        number = kind_counts[kind] = kind_counts.get(kind, -1) + 1
        path = out / (f"{number:05d}.tar" if kind == "mp4" else f"{kind}-{number:05d}.tar")
        contents = []
        while sample is not None and len(contents) < settings.samples_per_shard:
            if member_kind(sample.name) != kind:
                break
            contents.append(sample)
            sample = next(samples, None)
        if not path.exists():
            with shard_writer(path) as shard:
                for one in contents:
                    shard.write(_shard_sample(folder.root, one))
        report.shards += 1


def _shard_sample(source: Path, sample: Examined) -> dict:
    """A sample in the form that the shard writer accepts."""
    assert sample.about is not None
    path = source / sample.name
    if sample.scene is None:
        data = _unchanged_bytes(path, sample)
    else:
        data = cut_scene(path, sample.name, sample.scene, sample.about["fps"])
    caption = sample.about["caption"].encode()
    return {
        "__key__": sample.key,
        member_kind(sample.name): data,
        "txt": caption,
        "json": json.dumps(sample.about).encode(),
    }


def _unchanged_bytes(path: Path, sample: Examined) -> bytes:
    """A file's bytes, which must be those that were examined."""
    assert sample.about is not None
    again = "leave the folder alone and run the command again"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{printable(str(path))} cannot be read any more ({error.strerror}): {again}") from None
    if hashlib.sha256(data).hexdigest() != sample.about["sha256"]:
        raise InputError(f"{printable(str(path))} has changed while the folder was packed: {again}")
    return data


def _accepted(
    folder: SourceFolder, captions: CaptionReader, settings: PackingSettings, out: Path, report: PackingReport
) -> Iterator[Examined]:
    """Yield the samples that belong in the shards, in order; others are added to the report with the reasons."""
    first_with_hash: dict[str, Examined] = {}
    uncaptioned: set[str] = set()
    for one in examine_files(folder, settings, out):
        name = one.name if one.scene is None else f"{one.name}, frames {one.scene[0]} to {one.scene[1] - 1}"
        if one.reason:
            report.reject(name, UNREADABLE, one.reason)
            continue
        assert one.about is not None
        twin = first_with_hash.setdefault(one.key, one)
        if twin is not one:
            lost = one.key in uncaptioned and _has_caption(one.name, captions)
            advice = f", which has no caption: remove {twin.name}, or give it this file's caption" if lost else ""
            report.reject(name, COPY, f"same bytes as {twin.name}{advice}")
            continue
        if failed := settings.why_not(one.about):
            report.reject(name, f"does not pass {failed[0]}", failed[1])
            continue
        try:
            description = captions.find(one.name)
        except InputError as error:
            report.reject(name, BAD_CAPTION, str(error))
            continue
        if not description.captions:
            uncaptioned.add(one.key)
        about = _about_sample(one, description, settings)
        report.add(about, is_image=member_kind(one.name) != "mp4")
        yield Examined(one.name, one.key, about=about, scene=one.scene)


def _has_caption(name: str, captions: CaptionReader) -> bool:
    with contextlib.suppress(InputError):
        return bool(captions.find(name).captions)
    return False


def _about_sample(one: Examined, description: Description, settings: PackingSettings) -> dict:
    """The content of a sample's .json."""
    assert one.about is not None
    about: dict[str, Any] = {"key": one.key, "source": valid_unicode(one.name), "caption": description.caption}
    if len(description.captions) > 1:
        about["captions"] = list(description.captions)
    label = _label(one.name, description, settings)
    return about | one.about | ({} if label is None else {"label": valid_unicode(label)})


def _account_for_the_rest(folder: SourceFolder, captions: CaptionReader, report: PackingReport) -> None:
    """Add all other paths of the folder to the report: those that are not files, unused captions, unsupported files."""
    for name, problem in folder.odd.items():
        report.reject(name, NOT_A_FILE, problem)
    for name, reason, exactly in sorted(captions.left_over(), key=lambda one: one[1] == NOT_TAKEN):
        report.reject(name, reason, exactly)
    report.tables = captions.describe_tables()
    report.rows_without_video = sum(table["rows_without_video"]["count"] for table in report.tables)
    for note in captions.notes:
        report.note(note)


def _label(name: str, description: Description, settings: PackingSettings) -> str | None:
    if settings.labels == "table":
        return description.label
    folder = Path(name).parent.name
    return folder or None
