"""Which examined files become samples of the shards, with what about them, and why others do not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from odvae.packing.captions import NOT_TAKEN, CaptionReader
from odvae.packing.fetching import NOT_DOWNLOADED
from odvae.packing.journal import Examined
from odvae.packing.report import PackingReport
from odvae.packing.settings import PackingSettings
from odvae.packing.source_folder import SourceFolder, member_kind
from odvae.packing.source_table import SourceTable
from odvae.packing.texts_beside import Description
from odvae.running.account import BAD_CAPTION, COPY, NOT_A_FILE, UNREADABLE
from odvae.running.errors import InputError
from odvae.running.text import valid_unicode

Captions = CaptionReader | SourceTable


def accepted(
    examined: Iterable[Examined],
    captions: Captions,
    settings: PackingSettings,
    report: PackingReport,
    on_rejected: Callable[[str], object] = lambda _name: None,
) -> Iterator[Examined]:
    """Yield the samples that belong in the shards, in order; others are added to the report with the reasons.

    `on_rejected` is called with the name of a file that has no sample.
    """
    first_with_key: dict[str, str] = {}
    uncaptioned: set[str] = set()

    def reject(one: Examined, reason: str, exactly: str) -> None:
        report.reject(one.sample_name, reason, exactly)
        if one.scene is None:  # else other scenes of the file may be used
            on_rejected(one.name)

    for one in examined:
        if one.reason:
            reject(one, NOT_DOWNLOADED if one.reason.startswith(NOT_DOWNLOADED) else UNREADABLE, one.reason)
            continue
        assert one.about is not None
        first = first_with_key.setdefault(one.key, one.name)
        if first != one.name:
            lost = one.key in uncaptioned and _has_caption(one.name, captions)
            advice = f", which has no caption: remove {first}, or give it this file's caption" if lost else ""
            reject(one, COPY, f"same bytes as {first}{advice}")
            continue
        if failed := settings.why_not(one.about):
            reject(one, f"does not pass {failed[0]}", failed[1])
            continue
        try:
            description = captions.find(one.name)
        except InputError as error:
            del first_with_key[one.key]  # a copy may have a caption that can be read
            reject(one, BAD_CAPTION, str(error))
            continue
        if not description.captions:
            uncaptioned.add(one.key)
        others = captions.others(one.name) if isinstance(captions, SourceTable) else {}
        about = _about_sample(one, description, others, settings)
        report.add(about, is_image=member_kind(one.name) != "mp4")
        yield Examined(one.name, one.key, about=about, scene=one.scene)


def account_for_the_rest(source: SourceFolder | SourceTable, captions: Captions, report: PackingReport) -> None:
    """Add all other paths of a folder to the report: those that are not files, unused captions, unsupported files; and
    the rows of tables that name no file."""
    for name, problem in source.odd.items() if isinstance(source, SourceFolder) else ():
        report.reject(name, NOT_A_FILE, problem)
    for name, reason, exactly in sorted(captions.left_over(), key=lambda one: one[1] == NOT_TAKEN):
        report.reject(name, reason, exactly)
    report.tables = captions.describe_tables()
    report.rows_without_video = sum(table["rows_without_video"]["count"] for table in report.tables)
    for note in captions.notes:
        report.note(note)


def _has_caption(name: str, captions: Captions) -> bool:
    with contextlib.suppress(InputError):
        return bool(captions.find(name).captions)
    return False


def _about_sample(
    one: Examined, description: Description, others: dict[str, Any], settings: PackingSettings
) -> dict[str, Any]:
    """The content of a sample's .json."""
    assert one.about is not None
    about: dict[str, Any] = {"key": one.key, "source": valid_unicode(one.name), "caption": description.caption}
    if len(description.captions) > 1:
        about["captions"] = list(description.captions)
    label = _label(one.name, description, settings)
    about |= one.about | ({} if label is None else {"label": valid_unicode(label)})
    if group := settings.group_of(one.name):
        about["group"] = valid_unicode(group)
    return about | ({"row": others} if others else {})


def _label(name: str, description: Description, settings: PackingSettings) -> str | None:
    if settings.labels == "table":
        return description.label
    folder = Path(name).parent.name
    return folder or None
