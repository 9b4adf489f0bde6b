"""Metadata of a sample's video (length, size, rate, keyframes): from its KEY.json, or found by examining it.

KEY.json may come from other tools. `make_shards` names a video by the hash of its bytes and stores the same hash in
KEY.json, so its files are recognized, and their metadata is trusted. From other .json files only the label and captions
are used, if they have the right type, and a worker process examines the video once (`odvae.shards.facts_journal`). The
results are in the folder's index (`odvae.index`), so that later starts are as fast as with shards of this project.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from odvae.running.files import load_json
from odvae.running.worker_pool import WorkerPool
from odvae.shards.samples import Sample, video_of
from odvae.video.decoding import decoding
from odvae.video.extensions import IMAGE_EXTENSIONS
from odvae.video.hdr import Transfer
from odvae.video.images import examine_image
from odvae.video.video_io import VideoFacts, examine

# Upper limit of all numbers: more frames (38 days at 30 fps) or seconds than any video has.
_MOST = 10**8


_TRANSFERS = get_args(Transfer)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MOST


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MOST


def _is_pairs(value: Any, first: Callable[[Any], bool], second: Callable[[Any], bool]) -> bool:
    if not isinstance(value, list):
        return False
    for pair in value:  # noqa: SIM110 - `all` of a generator takes twice as long, and there may be thousands of pairs
        if not (isinstance(pair, list) and len(pair) == 2 and first(pair[0]) and second(pair[1])):
            return False
    return True


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**63) < value < 2**63


# The entries of a KEY.json that are read, and how they are validated.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "frames": _is_count,
    "height": _is_count,
    "width": _is_count,
    "fps": _is_amount,
    "seconds": _is_amount,
    "variable_rate": lambda value: isinstance(value, bool),
    "keyframes": lambda value: _is_pairs(value, _is_integer, _is_integer),
    "transfer": lambda value: value in _TRANSFERS,
    "time_steps": lambda value: value is None or _is_pairs(value, _is_amount, _is_count),
    "sha256": lambda value: isinstance(value, str),
    "label": lambda value: isinstance(value, str) or _is_integer(value) or value is None,
    "caption": lambda value: isinstance(value, str) or value is None,
    "captions": lambda value: isinstance(value, list),
}


def checked_about(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """The bytes of a KEY.json -> (its entries without those of a wrong type, descriptions of what is ignored).

    Unknown entries are kept unchanged. A .json that is not a UTF-8 object is ignored as a whole.
    """
    try:
        about = load_json(data.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError:
        return {}, ["not UTF-8"]
    except (ValueError, RecursionError):
        return {}, ["not JSON"]
    if not isinstance(about, dict):
        return {}, [f"a {type(about).__name__}, not an object"]
    wrong = [name for name, is_right in _ENTRIES.items() if name in about and not is_right(about[name])]
    for name in wrong:
        del about[name]
    return about, [f"its {name}" for name in wrong]


def about_sample(sample: Sample) -> dict[str, Any]:
    """The valid entries of a sample's KEY.json; empty if it has none."""
    return checked_about(sample.read("json"))[0] if "json" in sample.members else {}


def known_facts(sample: Sample) -> VideoFacts | None:
    """The facts of a sample's video or image that are known without reading it; None if it must be examined."""
    return sample.facts or own_facts(sample.key, about_sample(sample))


_FACTS = tuple(VideoFacts.__dataclass_fields__)
_SIZE = frozenset(("frames", "height", "width"))
_VIDEO_FACTS = frozenset(("fps", "seconds", "variable_rate", "keyframes"))  # which an image has not


def own_facts(key: str, about: dict[str, Any]) -> VideoFacts | None:
    """The facts in a KEY.json written by `make_shards`; None for other files, and if facts are missing.

    The clips depend on these numbers, so only numbers found by decoding are trusted.
    """
    name = video_of(key).rpartition("/")[2]
    if not name or not about.get("sha256", "").startswith(name) or not about.keys() >= _SIZE:
        return None
    fields = {name: about[name] for name in _FACTS if name in about}
    if (about["frames"] > 1 and not fields.keys() >= _VIDEO_FACTS) or not steps_fit(fields):
        return None
    return facts_of_json({"fps": 0.0, "seconds": 0.0, "variable_rate": False, "keyframes": [], **fields})


def steps_fit(fields: dict[str, Any]) -> bool:
    """Whether the number of time steps is the number of frames minus one, or there are none."""
    steps = fields.get("time_steps")
    frames, seconds = fields["frames"], fields.get("seconds", 0.0)
    if frames > 1 and abs(frames - fields.get("fps", 0.0) * seconds) > 0.1 * frames:
        return False
    return steps is None or sum(repeats for _, repeats in steps) == fields["frames"] - 1


def facts_of_json(fields: dict[str, Any]) -> VideoFacts:
    """VideoFacts from JSON, where tuples are lists, which are changed in `fields`."""
    for name in ("keyframes", "time_steps"):
        if fields.get(name):
            fields[name] = list(map(tuple, fields[name]))
    return VideoFacts(**fields)


@dataclass(frozen=True)
class ExamineLimits:
    """Number of worker processes that examine videos, and their time and memory limits for each video."""

    workers: int
    seconds: float
    memory_gib: float

    def pool(self) -> WorkerPool[Sample, VideoFacts]:
        return WorkerPool(examine_sample, self.workers, self.seconds, self.memory_gib, name_of=lambda one: one.name)


def examine_sample(sample: Sample) -> VideoFacts:
    """Find the facts of a sample's video or image from the file itself. Raises VideoError if it cannot be read."""
    member = sample.video_member
    with decoding(sample.name):
        if member in IMAGE_EXTENSIONS:
            image = examine_image(sample.read(member), sample.name)
            return VideoFacts(1, image.height, image.width, 0.0, 0.0, False, [])
        return examine(sample.open(member), sample.name)
