"""The captions of a shard's sample: its text, and those in its .json."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from odvae.running.errors import InputError
from odvae.shards.facts import about_sample
from odvae.shards.samples import Sample
from odvae.tables.cells import is_valid_text


def each_once(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions that are not empty, in order, without duplicates."""
    return tuple(dict.fromkeys([caption for caption in captions if caption.strip()]))


def captions_in(sample: Sample) -> tuple[str, ...]:
    """All captions of a shard's sample: its text, then those in the list `captions` of its .json.

    An empty text means that there is no caption; without a text, the .json's `caption` is used. Raises InputError if
    the text is not UTF-8.
    """
    text = sample.read_text() if "txt" in sample.members else None
    return () if text == "" else captions_of(text, about_sample(sample))


def caption_problem(sample: Sample) -> str:
    """Why a sample's text cannot be read; empty if it can, or there is none."""
    try:
        sample.read_text()
    except InputError as error:
        return str(error)
    return ""


def shown_caption(sample: Sample) -> str:
    """A sample's text, to be shown next to its video; where it cannot be read that is shown, and printed."""
    if problem := caption_problem(sample):
        print(f"warning: {problem}", file=sys.stderr, flush=True)
        return "(its caption cannot be read)"
    return sample.read_text()


def captions_of(text: str | None, about: dict[str, Any]) -> tuple[str, ...]:
    """The captions in the contents of a sample's text (None if it has none) and .json."""
    if text == "":
        return ()
    more = about.get("captions")
    found = [about.get("caption") if text is None else text, *(more if isinstance(more, list) else [])]
    return each_once([one for one in found if isinstance(one, str) and is_valid_text(one)])
