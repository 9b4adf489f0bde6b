"""Writing of the shards of a packing: which samples are in which shard, and what is written again after a change."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from odvae.index.building import index_one, open_index
from odvae.index.video_rows import VideoIndexer
from odvae.packing.journal import Examined, Journal
from odvae.packing.output import shard_place
from odvae.packing.scenes import cut_scene
from odvae.packing.settings import PackingSettings
from odvae.packing.source_bucket import SourceBucket
from odvae.packing.source_folder import SourceFolder, member_kind, state_of
from odvae.packing.source_table import SourceTable
from odvae.packing.state import PackingState, remove_partial
from odvae.running.commands import command_line
from odvae.running.errors import STORAGE_ERRORS, InputError
from odvae.running.failures import Failure
from odvae.running.text import printable
from odvae.running.worker_pool import OrderedPool, WorkerPool
from odvae.shards.facts import ExamineLimits
from odvae.shards.tars import list_shards, shard_writer
from odvae.storage.paths import StorageError
from odvae.storage.whole_files import on_disk

# For indexing of shards whose samples were examined before: their .json files have all facts.
_NOTHING_TO_EXAMINE = ExamineLimits(workers=0, seconds=60.0, memory_gib=4.0)

# Shards that are being written, or wait for it, while files are examined for later ones.
_AT_ONCE = {"processes": 1, "ray": 8}

# Bytes that are written at once more quickly than by another process.
_SMALL = 1 << 25

# Seconds and GiB of a process that writes shards.
_NO_LIMITS = (1e8, 1e5)


@dataclass(frozen=True)
class ShardJob:
    """A shard that is to be written: its path, and its samples with their files."""

    path: Path
    samples: tuple[tuple[Path, Examined], ...]
    continues: str = ""
    """The file whose next scenes are in the next shard."""

    @property
    def digest(self) -> str:
        """A hash of what is in the shard."""
        found = hashlib.sha256()
        for _, one in self.samples:
            found.update(json.dumps([one.key, one.about, one.scene]).encode())
        return found.hexdigest()


class CannotWriteError(InputError):
    """A shard cannot be written, for example since the disk is full; its samples are right."""

    cause = "limit"


def write_shard(job: ShardJob) -> int:
    """Write a shard and its index; returns the shard's size. Raises InputError if a file has changed, or the disk is
    full."""
    try:
        with shard_place(job.path) as place:
            with shard_writer(place) as shard:
                for path, one in job.samples:
                    shard.write(_shard_sample(path, one))
            index_one(place, VideoIndexer(_NOTHING_TO_EXAMINE))
            return place.stat().st_size
    except StorageError as error:
        raise CannotWriteError(
            f"{error}. What was written before is intact; run the same command again to go on"
        ) from None
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        raise CannotWriteError(
            f"{job.path}: {error.strerror}. What was written before is intact; run the same command again to go on"
        ) from None


def index_folder(out: Path) -> None:
    """Write the index of a folder of shards, each of which has its own."""
    open_index(out, list_shards(out, command_line("make_shards")), VideoIndexer(_NOTHING_TO_EXAMINE))


class ShardWriter:
    """Writes the shards that are not there yet; which sample is in which shard is a function of the files.

    `names` are the shards of this packing, in order. Use it in a `with` block, which waits for the last ones.
    """

    def __init__(
        self,
        source: SourceFolder | SourceTable,
        settings: PackingSettings,
        state: PackingState,
        journal: Journal,
    ) -> None:
        self.source, self.settings, self.state, self.journal = source, settings, state, journal
        self.names: list[str] = []
        self.bytes = 0
        self._written, self._size_of = state.written_shards(), state.shard_sizes()
        self._begun: deque[tuple[ShardJob, int]] = deque()
        self._pool: OrderedPool[ShardJob, int] | None = None

    def write(self, samples: Iterator[Examined]) -> None:
        """Write all samples, in order."""
        numbers: dict[str, int] = {}
        sample = next(samples, None)
        while sample is not None:
            kind = member_kind(sample.name)
            number = numbers[kind] = numbers.get(kind, -1) + 1
            contents = []
            while sample is not None and len(contents) < self.settings.samples_per_shard:
                if member_kind(sample.name) != kind:
                    break
                contents.append((self.source.path(sample.name), sample))
                sample = next(samples, None)
            name = f"{self.state.prefix}{'' if kind == 'mp4' else f'{kind}-'}{number:05d}.tar"
            self._add(ShardJob(self.state.out / name, tuple(contents), sample.name if sample else ""))
        while self._begun:
            self._finish_first()
        self._remove_others()

    def _add(self, job: ShardJob) -> None:
        name = job.path.name
        self.names.append(name)
        there = self._written.get(name, {})
        if (size := self._size_of(name)) is not None:
            if (there.get("contents"), there.get("bytes")) == (job.digest, size):
                self._done(job, size)
                return
            if name not in self._written:
                raise InputError(
                    f"{job.path} was not written by this packing: move it elsewhere, and run the same command again"
                )
        self.state.note_shard(name)
        if self.state.mirror is not None:
            self.journal.begin_piece()
            self.state.save()
        if self._is_written_elsewhere(self._have_files(job)):
            self._pool = self._pool or self._open_pool()
            self._begun.append((job, self._pool.submit(job)))
            while len(self._begun) > _AT_ONCE[self.settings.engine]:
                self._finish_first()
            return
        try:
            size = write_shard(job)
        except InputError as error:
            self._failed(job, error.cause)
            raise
        self._note(job, size)

    def _open_pool(self) -> OrderedPool[ShardJob, int]:
        """Shards are written while files are examined for later ones: here by a process of its own."""
        if self.settings.engine == "ray":
            from odvae.cluster.ray_pool import RayPool

            return RayPool(write_shard, seconds=None, name_of=lambda job: job.path.name)
        return WorkerPool(write_shard, 1, *_NO_LIMITS, name_of=lambda job: job.path.name)

    def _failed(self, job: ShardJob, cause: str) -> None:
        if cause == "task":  # a file has changed since it was examined
            self.journal.forget(one.name for _, one in job.samples)

    def _finish_first(self) -> None:
        assert self._pool is not None
        job, ticket = self._begun.popleft()
        size = self._pool.result(ticket)
        if isinstance(size, Failure):
            self._failed(job, size.cause)
            raise InputError(size.reason if job.path.name in size.reason else f"{job.path}: {size.reason}")
        self._note(job, size)

    def _is_written_elsewhere(self, size: int) -> bool:
        """Whether a shard with this size is written by another process: not where starting it costs more."""
        if self.settings.engine == "ray":
            return True
        return self.settings.workers > 0 and (self.settings.cut_scenes or size > _SMALL or self._pool is not None)

    def _have_files(self, job: ShardJob) -> int:
        """Fetch the files again that an earlier command had, if they are gone. Returns the size of all."""
        if isinstance(self.source, SourceBucket) and not self.source.copies:
            return sum(self.source.states[one.name].size for _, one in job.samples)
        states = [state_of(path) for path, _ in job.samples]
        gone = [one.name for (_, one), state in zip(job.samples, states, strict=True) if state is None]
        for name, found in self.source.prepare(iter(dict.fromkeys(gone)), self.settings):
            if isinstance(found, Failure):
                self.journal.forget([name])
                raise InputError(f"{printable(name)}: {found.reason}. Run the same command again to go on without it")
        return sum(int(state[0]) for state in states if state is not None)

    def _note(self, job: ShardJob, size: int) -> None:
        self.state.note_shard(job.path.name, contents=job.digest, bytes=size)
        self._done(job, size)

    def _done(self, job: ShardJob, size: int) -> None:
        self.bytes += size
        for name in {one.name for _, one in job.samples}.difference([job.continues]):
            self.source.release(name)

    def _remove_others(self) -> None:
        """Remove the shards that this packing had written before its input changed, beyond its last one."""
        for name in set(self._written).difference(self.names):
            self.state.remove_shard(name)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()
            if self.state.mirror is None:
                remove_partial(self.state.out, self.state.prefix)


def _shard_sample(path: Path, sample: Examined) -> dict:
    """A sample in the form that the tar writer accepts."""
    assert sample.about is not None
    with on_disk(path) as here:  # a task of Ray copies its files from a URL
        if sample.scene is None:
            data = _unchanged_bytes(here, sample)
        else:
            data = cut_scene(here, sample.name, sample.scene, sample.about["fps"])
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
