"""Metadata of a sample's video (length, size, rate, keyframes): from its KEY.json, or examined once and cached.

KEY.json may come from other tools. `make_shards` names a video by the hash of its bytes and stores the same hash in
KEY.json, so its files are recognized, and their metadata is trusted. From other .json files only the label and captions
are used, if they have the right type, and a worker process examines the video once. The results are cached in
`.facts.jsonl` next to the shards (or in the user's cache folder if they are read-only), so that later starts are as
fast as with shards of this project.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from odvae.video.decoding import decoding
from odvae.video.extensions import IMAGE_EXTENSIONS
from odvae.video.hdr import Transfer
from odvae.video.images import examine_image
from odvae.video.video_io import VideoFacts, examine

FACTS = ".facts.jsonl"

# The decoder that found the facts: another version of FFmpeg may count frames differently.
_READER = f"av {av.__version__}"


# Upper limit of all numbers: more frames (38 days at 30 fps) or seconds than any video has.
_MOST = 10**8


def _is_count(value: Any) -> bool:
    return _is_integer(value) and 0 < value <= _MOST


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST


def _is_pairs(value: Any, first: Callable[[Any], bool], second: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and first(pair[0]) and second(pair[1]) for pair in value
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


# The entries of a KEY.json that are read, and how they are validated.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "frames": _is_count,
    "height": _is_count,
    "width": _is_count,
    "fps": _is_amount,
    "seconds": _is_amount,
    "variable_rate": lambda value: isinstance(value, bool),
    "keyframes": lambda value: _is_pairs(value, _is_integer, _is_integer),
    "transfer": lambda value: value in get_args(Transfer),
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
    """The valid entries of a sample's KEY.json; empty if it has none."""
    return checked_about(sample.read("json"))[0] if "json" in sample.members else {}


def known_facts(sample: Sample) -> VideoFacts | None:
    """The facts of a sample's video or image that are known without reading it; None if it must be examined."""
    return sample.facts or own_facts(sample.key, about_sample(sample))


def own_facts(key: str, about: dict[str, Any]) -> VideoFacts | None:
    """The facts in a KEY.json written by `make_shards`; None for other files, and if facts are missing.

    The clips depend on these numbers, so only numbers found by decoding are trusted.
    """
    name = video_of(key).rpartition("/")[2]
    if not name or not about.get("sha256", "").startswith(name) or not about.keys() >= {"frames", "height", "width"}:
        return None
    fields = {name: about[name] for name in VideoFacts.__dataclass_fields__ if name in about}
    image_facts = {"fps": 0.0, "seconds": 0.0, "variable_rate": False, "keyframes": []}
    if (about["frames"] > 1 and not fields.keys() >= image_facts.keys()) or not _steps_fit(fields):
        return None
    return facts_of_json(image_facts | fields)


def _steps_fit(fields: dict[str, Any]) -> bool:
    """Whether the number of time steps is the number of frames minus one, or there are none."""
    steps = fields.get("time_steps")
    frames, seconds = fields["frames"], fields.get("seconds", 0.0)
    if frames > 1 and abs(frames - fields.get("fps", 0.0) * seconds) > 0.1 * frames:
        return False
    return steps is None or sum(repeats for _, repeats in steps) == fields["frames"] - 1


def facts_of_json(fields: dict[str, Any]) -> VideoFacts:
    """VideoFacts from JSON, where tuples are lists."""
    pairs = {name: [tuple(pair) for pair in fields[name]] for name in ("keyframes", "time_steps") if fields.get(name)}
    return VideoFacts(**fields | pairs)


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


def find_facts(
    samples: Iterable[Sample], limits: ExamineLimits, ignored: Counter[str]
) -> Iterator[tuple[Sample, VideoFacts | Failure]]:
    """Yield each sample and its facts, in order: known, cached, or found by worker processes and then cached.

    Facts that are not in a sample's .json are added to the sample. Ignored entries of .json files are counted in
    `ignored`.
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
        sample.video_member  # noqa: B018 - raises InputError if there is none
        about, wrong = checked_about(sample.read("json")) if "json" in sample.members else ({}, [])
    except (InputError, OSError) as error:
        return sample, Failure(str(error))
    ignored.update(wrong)
    if own := own_facts(sample.key, about):
        return sample, own
    remembered = file.recall(sample)
    return (replace(sample, facts=remembered) if isinstance(remembered, VideoFacts) else sample), remembered


class FactsFile:
    """`.facts.jsonl`, a cache of the facts of the samples in a folder's shards. Facts of changed shards are ignored.

    Lines that cannot be read are skipped. Without write permission, nothing is cached.
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
        """The cached result of a sample; None if there is none, or if the shard has changed since."""
        row = self.rows.get((sample.shard.name, sample.key))
        if row is None or row.get("of") != self._identity(sample.shard) or row.get("reader") != _READER:
            return None
        if "reason" in row:
            other_limit = row.get("limits") is not None and row["limits"] != self.limits
            return None if other_limit else Failure(f"{sample.name}: {row['reason']}")
        facts, ignored = checked_about(json.dumps(row.get("facts")).encode())
        complete = not ignored and facts.keys() == VideoFacts.__dataclass_fields__.keys() and _steps_fit(facts)
        return facts_of_json(facts) if complete else None

    def remember(self, sample: Sample, found: VideoFacts | Failure) -> None:
        """Cache a result. Exceeding a limit is cached together with the limit; a killed process is not cached."""
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
        """Open the first of the two files that is writable; an incomplete last line is terminated."""
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
