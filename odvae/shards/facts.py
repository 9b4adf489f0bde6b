"""What is known of a sample's video before it is decoded: from its KEY.json, or examined once and remembered.

KEY.json may be by anybody. `make_shards` names a video by the hash of its bytes and notes the same hash beside what it
found, so its own notes are known and believed. Of every other .json only the label and the like are taken, where they
have the right type; how long and how large the video is, a guarded worker finds out once. That is kept in
`.facts.jsonl` beside the shards (or, where they may not be written, in the user's cache), so that the second start is
as fast as with own shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO, get_args

import av

from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.running.worker_pool import WorkerPool
from odvae.shards.samples import Sample, video_of
from odvae.video.extensions import IMAGE_EXTENSIONS
from odvae.video.hdr import Transfer
from odvae.video.images import examine_image
from odvae.video.video_io import VideoFacts, examine

FACTS = ".facts.jsonl"

# What found the facts: another FFmpeg may count frames another way.
_READER = f"av {av.__version__}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_pairs(value: Any, first: Callable[[Any], bool], second: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and first(pair[0]) and second(pair[1]) for pair in value
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# The entries of a KEY.json that are read, and when they are what they should be.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "frames": _is_count,
    "height": _is_count,
    "width": _is_count,
    "fps": _is_amount,
    "seconds": _is_amount,
    "variable_rate": lambda value: isinstance(value, bool),
    "keyframes": lambda value: _is_pairs(value, _is_whole, _is_whole),
    "transfer": lambda value: value in get_args(Transfer),
    "time_steps": lambda value: value is None or _is_pairs(value, _is_amount, _is_count),
    "sha256": lambda value: isinstance(value, str),
    "label": lambda value: isinstance(value, str) or _is_whole(value) or value is None,
    "caption": lambda value: isinstance(value, str) or value is None,
    "captions": lambda value: isinstance(value, list),
}


def checked_about(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """The bytes of a KEY.json -> (its entries, without those of a wrong type; what is ignored, a few words each).

    Entries that are not read here are kept as they are. A .json that is no object in UTF-8 is ignored as a whole.
    """
    try:
        about = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return {}, ["not UTF-8"]
    except (ValueError, RecursionError):
        return {}, ["not JSON"]
    if not isinstance(about, dict):
        return {}, [f"a {type(about).__name__}, not an object"]
    wrong = [name for name, is_right in _ENTRIES.items() if name in about and not is_right(about[name])]
    return {name: value for name, value in about.items() if name not in wrong}, [f"its {name}" for name in wrong]


def about_sample(sample: Sample) -> dict[str, Any]:
    """The usable entries of a sample's KEY.json; empty where it has none."""
    return checked_about(sample.read("json"))[0] if "json" in sample.members else {}


def known_facts(sample: Sample) -> VideoFacts | None:
    """What is known of the sample's video or image without looking at it; None where it must be examined."""
    return sample.facts or own_facts(sample.key, about_sample(sample))


def own_facts(key: str, about: dict[str, Any]) -> VideoFacts | None:
    """The facts in a KEY.json that `make_shards` wrote; None for others, and for what is not complete.

    A number that is believed decides which clips there are, so it must be one that decoding found.
    """
    name = video_of(key).rpartition("/")[2]
    if not name or not about.get("sha256", "").startswith(name) or not about.keys() >= {"frames", "height", "width"}:
        return None
    fields = {name: about[name] for name in VideoFacts.__dataclass_fields__ if name in about}
    still = {"fps": 0.0, "seconds": 0.0, "variable_rate": False, "keyframes": []}  # an image's
    if about["frames"] > 1 and not fields.keys() >= still.keys():
        return None
    return facts_of_json(still | fields)


def facts_of_json(fields: dict[str, Any]) -> VideoFacts:
    """VideoFacts from JSON, in which tuples have become lists."""
    pairs = {name: [tuple(pair) for pair in fields[name]] for name in ("keyframes", "time_steps") if fields.get(name)}
    return VideoFacts(**fields | pairs)


@dataclass(frozen=True)
class ExamineLimits:
    """How many guarded workers examine, and what each sample may take."""

    workers: int
    seconds: float
    memory_gib: float

    def pool(self) -> WorkerPool[Sample, VideoFacts]:
        return WorkerPool(examine_sample, self.workers, self.seconds, self.memory_gib, name_of=lambda one: one.name)


def examine_sample(sample: Sample) -> VideoFacts:
    """The facts of a sample's video or image, from the file itself. Raises VideoError where it cannot be read."""
    member = sample.video_member
    if member in IMAGE_EXTENSIONS:
        image = examine_image(sample.read(member), sample.name)
        return VideoFacts(1, image.height, image.width, 0.0, 0.0, False, [])
    return examine(sample.open(member), sample.name)


def find_facts(
    samples: Iterable[Sample], limits: ExamineLimits, ignored: Counter[str]
) -> Iterator[tuple[Sample, VideoFacts | Failure]]:
    """Each sample and its facts, in order: known, remembered, or found by guarded workers and then remembered.

    Samples come back with the facts that their .json does not have. What is ignored in .json files is counted.
    """
    files: dict[Path, FactsFile] = {}
    waiting: deque[tuple[Sample, VideoFacts | Failure | int]] = deque()  # an int: the ticket of a worker's result
    with contextlib.ExitStack() as held:
        pool: WorkerPool[Sample, VideoFacts] | None = None

        def finish() -> tuple[Sample, VideoFacts | Failure]:
            sample, found = waiting.popleft()
            if isinstance(found, int):
                assert pool is not None
                found = pool.result(found)
                files[sample.shard.parent].remember(sample, found)
                if not isinstance(found, Failure):
                    sample = replace(sample, facts=found)
            return sample, found

        for sample in samples:
            folder = sample.shard.parent
            if folder not in files:
                files[folder] = FactsFile(folder, limits)
                held.callback(files[folder].close)
            sample, found = _without_examining(sample, files[folder], ignored)
            if found is None:
                if pool is None:
                    pool = held.enter_context(limits.pool())
                waiting.append((sample, pool.submit(sample)))
            else:
                waiting.append((sample, found))
            if len(waiting) > 4 * max(1, limits.workers):
                yield finish()
        while waiting:
            yield finish()


def _without_examining(
    sample: Sample, file: FactsFile, ignored: Counter[str]
) -> tuple[Sample, VideoFacts | Failure | None]:
    try:
        sample.video_member  # noqa: B018 - raises where there is none
        about, wrong = checked_about(sample.read("json")) if "json" in sample.members else ({}, [])
    except (InputError, OSError) as error:
        return sample, Failure(str(error))
    ignored.update(wrong)
    if own := own_facts(sample.key, about):
        return sample, own
    remembered = file.recall(sample)
    return (replace(sample, facts=remembered) if isinstance(remembered, VideoFacts) else sample), remembered


class FactsFile:
    """`.facts.jsonl`: what was found of the samples in a folder's shards. Facts of a shard that changed are forgotten.

    It is a cache: lines that cannot be read are passed over, and where nothing can be written nothing is kept.
    """

    def __init__(self, folder: Path, limits: ExamineLimits) -> None:
        self.limits = [limits.seconds, limits.memory_gib]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        own_name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
        self.paths = [folder / FACTS, cache / "odvae" / f"{own_name}{FACTS}"]
        self.identities: dict[Path, list[int]] = {}
        self.rows: dict[tuple[str, str], dict] = {}
        self.file: TextIO | None = None
        for path in self.paths:
            for row in _readable_rows(path):
                self.rows[str(row.get("shard")), str(row.get("key"))] = row

    def recall(self, sample: Sample) -> VideoFacts | Failure | None:
        """What was found of a sample; None where nothing was, or not of this shard as it is now."""
        row = self.rows.get((sample.shard.name, sample.key))
        if row is None or row.get("of") != self._identity(sample.shard) or row.get("reader") != _READER:
            return None
        if "reason" in row:
            other_limit = row.get("limits") is not None and row["limits"] != self.limits
            return None if other_limit else Failure(f"{sample.name}: {row['reason']}")
        facts, ignored = checked_about(json.dumps(row.get("facts")).encode())
        complete = not ignored and facts.keys() == VideoFacts.__dataclass_fields__.keys()
        return facts_of_json(facts) if complete else None

    def remember(self, sample: Sample, found: VideoFacts | Failure) -> None:
        """Keep what was found. That a sample passed a limit holds for this limit; that its process was killed, not."""
        if isinstance(found, Failure) and found.cause == "system":
            return
        row: dict[str, Any] = {
            "shard": sample.shard.name,
            "key": sample.key,
            "of": self._identity(sample.shard),
            "reader": _READER,
        }
        if isinstance(found, Failure):
            row["reason"] = found.reason.removeprefix(f"{sample.name}: ")
            row["limits"] = self.limits if found.cause == "limit" else None
        else:
            row["facts"] = asdict(found)
        file = self._open()
        with contextlib.suppress(OSError):
            if file is not None:
                file.write(json.dumps(row) + "\n")
                file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def _open(self) -> TextIO | None:
        """The first of the two places that can be written; a line that was cut short there is ended."""
        for path in self.paths if self.file is None else []:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
                if self.file.tell() and not path.read_bytes().endswith(b"\n"):
                    self.file.write("\n")
                break
        return self.file

    def _identity(self, shard: Path) -> list[int]:
        if shard not in self.identities:
            state = shard.stat()
            self.identities[shard] = [state.st_size, state.st_mtime_ns]
        return self.identities[shard]


def _readable_rows(path: Path) -> Iterator[dict]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row
