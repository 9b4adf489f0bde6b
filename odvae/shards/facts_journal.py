"""Finding the facts of videos whose KEY.json has none: guarded worker processes, and a journal of what they have found.

The journal of a shard, `index/SHARD.facts.jsonl` next to the shards (or in the user's cache folder if they are
read-only), keeps what a stopped start has found; it is removed once the shard's index has the facts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av

from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.running.hashing import checksum
from odvae.running.worker_pool import WorkerPool
from odvae.shards.facts import ExamineLimits, checked_about, facts_of_json, steps_fit
from odvae.shards.samples import Sample
from odvae.storage.paths import is_remote
from odvae.storage.states import file_state
from odvae.video.video_io import VideoFacts

# The folder, next to the shards, of files about each of them.
INDEX_FOLDER = "index"

# The decoder that finds the facts: another version of FFmpeg may count frames differently.
READER = f"av {av.__version__}"


def shard_index_path(place: Path, shard: str) -> Path:
    """Path of the index of a shard, given by its file's name, in the folder of the shards or its place in the cache."""
    return place / INDEX_FOLDER / f"{shard}.arrow"


def index_places(folder: Path) -> tuple[Path, Path]:
    """Where files about a folder's shards may be: in the folder itself, or the user's cache where it is read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = str(folder) if is_remote(folder) else os.fsencode(folder.resolve())
    return folder, cache / "odvae" / hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def local_places(folder: Path) -> list[Path]:
    """Those of the `index_places` that are on this machine, where files can grow line by line."""
    return [place for place in index_places(folder) if not is_remote(place)]


def find_facts(
    samples: Iterable[tuple[Sample, VideoFacts | Failure | None]], limits: ExamineLimits
) -> Iterator[tuple[Sample, VideoFacts | Failure]]:
    """Yield each sample and its facts, in order: those that come with it, or, for None, those in the journal, or what
    worker processes find, which is then written into the journal.

    Facts that did not come with a sample are added to it.
    """
    journal: FactsJournal | None = None
    # An int is the ticket of a worker's result.
    waiting: deque[tuple[Sample, FactsJournal | None, VideoFacts | Failure | int]] = deque()
    with contextlib.ExitStack() as held:
        pool: WorkerPool[Sample, VideoFacts] | None = None

        def finish() -> tuple[Sample, VideoFacts | Failure]:
            sample, its_journal, result = waiting.popleft()
            if not isinstance(result, int):
                return sample, result
            assert pool is not None
            assert its_journal is not None
            found = pool.result(result)
            its_journal.remember(sample, found)
            return (sample if isinstance(found, Failure) else replace(sample, facts=found)), found

        for sample, known in samples:
            found = known
            if found is None:
                if journal is None or journal.shard != sample.shard:
                    journal = FactsJournal(sample.shard, limits)
                found = journal.recall(sample) if sample.has_video else _has_no_video(sample)
                if isinstance(found, VideoFacts):
                    sample = replace(sample, facts=found)
            if found is None:
                pool = pool or held.enter_context(limits.pool())
                waiting.append((sample, journal, pool.submit(sample)))
            elif waiting:
                waiting.append((sample, journal, found))
            else:
                yield sample, found
            if len(waiting) > 4 * max(1, limits.workers):
                yield finish()
        while waiting:
            yield finish()


def _has_no_video(sample: Sample) -> Failure | None:
    try:
        sample.video_member  # noqa: B018 - raises InputError
    except InputError as error:
        return Failure(str(error))
    return None


class FactsJournal:
    """What was found about the videos of a shard. Facts of a shard that has changed since are ignored.

    A line is a checksum and a row; lines that are damaged are skipped. Without write permission, nothing is kept.
    """

    def __init__(self, shard: Path, limits: ExamineLimits) -> None:
        self.shard, self.limits = shard, [limits.seconds, limits.memory_gib]
        self.paths = [place / INDEX_FOLDER / f"{shard.name}.facts.jsonl" for place in local_places(shard.parent)]
        state = file_state(shard, refresh=False)
        self._identity = [state.size, state.version if is_remote(shard) else int(state.version)]
        self._rows = {str(row.get("key")): row for path in self.paths for row in _readable_rows(path)}
        self._file: Path | None = None

    def recall(self, sample: Sample) -> VideoFacts | Failure | None:
        """What is known of a sample; None if nothing is, or if the shard has changed since."""
        row = self._rows.get(sample.key)
        if row is None or row.get("of") != self._identity or row.get("reader") != READER:
            return None
        if "reason" in row:
            other_limit = row.get("limits") is not None and row["limits"] != self.limits
            cause = "task" if row.get("limits") is None else "limit"
            return None if other_limit else Failure(f"{sample.name}: {row['reason']}", cause)  # type: ignore[arg-type]
        facts, ignored = checked_about(json.dumps(row.get("facts")).encode())
        complete = not ignored and facts.keys() == VideoFacts.__dataclass_fields__.keys() and steps_fit(facts)
        return facts_of_json(facts) if complete else None

    def remember(self, sample: Sample, found: VideoFacts | Failure) -> None:
        """Keep a result. Exceeding a limit is kept together with the limit; a killed process is not kept."""
        if isinstance(found, Failure) and found.cause == "system":
            return
        row: dict[str, Any] = {"key": sample.key, "of": self._identity, "reader": READER}
        if isinstance(found, Failure):
            row["reason"] = found.reason.removeprefix(f"{sample.name}: ")
            row["limits"] = self.limits if found.cause == "limit" else None
        else:
            row["facts"] = asdict(found)
        text = json.dumps(row)
        line = f"{_mark(text.encode())} {text}\n"
        for path in self.paths if self._file is None else [self._file]:
            with contextlib.suppress(OSError):
                if self._file is None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                        line = f"\n{line}"
                with open(path, "a", encoding="utf-8") as file:
                    file.write(line)
                self._file = path
                break

    def remove(self) -> None:
        """Remove the files: the index of the shard has what they have."""
        for path in self.paths:
            with contextlib.suppress(OSError):
                path.unlink()


def _mark(row: bytes) -> str:
    return f"{checksum(row):016x}"


def _readable_rows(path: Path) -> Iterator[dict]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        mark, _, text = line.partition(b" ")
        if mark == _mark(text).encode():
            yield json.loads(text)
