"""What a folder of latents already has, and what is missing, from its records and the video shards' size and time.

Nothing is hashed and no video shard is planned again whose latents are complete, so that a resumed encoding starts at
once: only where a video shard's size or modification time is another than in its record, it is hashed and compared.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ldm.encoding.job_records import UNKNOWN_PRECISION, JobRecord, read_job_records
from ldm.encoding.plan import ShardJob, plan_source, record_path, samples_by_shard
from ldm.encoding.settings import EncodeSettings
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError
from odvae.running.files import read_object, write_json
from odvae.running.progress import progress_bar
from odvae.shards.samples import Sample
from odvae.storage.whole_files import fingerprint, identity
from odvae.video_vae import VideoVAE

_HASHERS = 4  # threads

ENCODER = "encoder.json"


@dataclass(frozen=True)
class Outline:
    """The jobs of one video shard, without their clips."""

    names: list[str]
    too_short: list[str]
    unmirrored: int
    videos: int


class Sources:
    """The video shards of an encoding, in order, and their jobs: planned when they are asked for, once."""

    def __init__(self, samples: Sequence[Sample], settings: EncodeSettings, data: DataSettings, seed: int) -> None:
        self.samples = samples_by_shard(samples)
        self.named = {source.name: source for source in self.samples}
        self.settings, self.data, self.seed = settings, data, seed

    def plan(self, name: str) -> tuple[list[ShardJob], list[str]]:
        """The jobs of a video shard, and the keys of its videos that are too short for all of them."""
        source = self.named[name]
        plan = plan_source(source, self.samples[source], self.settings, self.data, self.seed)
        return plan.jobs, plan.too_short

    def jobs(self, waiting: Mapping[str, Iterable[str]]) -> list[ShardJob]:
        """The jobs with these names, given by video shard."""
        return [job for name, wanted in waiting.items() for job in self.plan(name)[0] if job.name in set(wanted)]

    def outline(self, name: str, records: Mapping[str, JobRecord]) -> Outline:
        """The jobs of a video shard: from its records, or planned where it has none."""
        known = next((record for record in records.values() if record.of_source), None)
        if known is not None and records.keys() >= set(known.of_source):
            own = [records[one] for one in known.of_source]
            unmirrored, videos = sum(one.unmirrored for one in own), sum(one.videos for one in own)
            return Outline(known.of_source, known.too_short, unmirrored, videos)
        jobs, too_short = self.plan(name)
        keys = {clip.sample.key for job in jobs for clip in job.clips}
        mirrored = {clip.sample.key for job in jobs for clip in job.clips if clip.flip}
        return Outline([job.name for job in jobs], too_short, len(keys - mirrored), len(keys))


class EncodedFolder:
    """The records of a folder of latents, and its files when they were listed (`files`; None: those in `folder`)."""

    def __init__(self, folder: Path, files: Collection[str] | None = None) -> None:
        self.folder = folder
        self.records = read_job_records(folder)
        self.files = set(os.listdir(folder) if files is None else files)
        self._by_source: dict[str, dict[str, JobRecord]] = {}
        for record in self.records.values():
            self._by_source.setdefault(record.file, {})[record.name] = record

    def of_source(self, source: str) -> dict[str, JobRecord]:
        """The records of a video shard, given by its file's name."""
        return self._by_source.get(source, {})

    def is_done(self, name: str) -> bool:
        """Whether the job's record and shard exist; a job whose clips all failed has no shard."""
        record = self.records.get(name)
        return record is not None and (name in self.files or record.entries == 0)

    def waiting(self, sources: Sources, chosen: Iterable[str]) -> dict[str, list[str]]:
        """The names of the jobs that are not done, by video shard, of the `chosen` video shards."""
        waiting = {}
        for source in chosen:
            names = sources.outline(source, self.of_source(source)).names
            if missing := [name for name in names if not self.is_done(name)]:
                waiting[source] = missing
        return waiting

    def check_same_vae(self, vae_sha256: str, vae_folder: Path) -> None:
        """Raise InputError where a shard was encoded by another VAE."""
        for record in self.records.values():
            if record.vae_sha256 != vae_sha256:
                raise InputError(
                    f"{self.folder / record.name} was encoded by another VAE ({record.vae_sha256[:16]}...) than "
                    f"{vae_folder} ({vae_sha256[:16]}...); remove {self.folder} and run the same command again"
                )

    def check_same_precision(self, precision: str) -> None:
        """Raise InputError where a shard was encoded in another precision than this machine would encode in."""
        for record in self.records.values():
            if record.precision not in (precision, UNKNOWN_PRECISION):
                raise InputError(
                    f"{self.folder / record.name} was encoded in {record.precision}, but here encode.precision=auto is "
                    f"{precision}: encode all shards on devices of the same kind"
                )

    def check_same_videos(self, sources: Sources, chosen: Iterable[str]) -> None:
        """Raise InputError where a video shard is missing, or one of the `chosen` ones changed after its encoding.

        Where size and modification time are those of the records, nothing is read. Otherwise the shard is hashed; if
        its bytes are the same (a copied folder), its records get the new time.
        """
        for record in self.records.values():
            if record.file not in sources.named:
                raise InputError(
                    f"{self.folder / record.name} was encoded from {record.source}, which no longer exists; remove "
                    f"{self.folder} and run the same command again"
                )
        encoded = [name for name in chosen if self.of_source(name)]
        touched: dict[str, tuple[int, int]] = {}
        with ThreadPoolExecutor(_HASHERS) as threads:
            states = threads.map(lambda name: identity(sources.named[name]), encoded)
            for name, state in zip(encoded, states, strict=True):
                records = self.of_source(name).values()
                if any((one.source_bytes, one.source_mtime_ns) != state for one in records):
                    touched[name] = state
        self._compare([sources.named[name] for name in touched], touched)

    def known_hashes(self, sources: Sources) -> dict[Path, str]:
        """The sha256 of the video shards that have a record, once they are checked."""
        return {sources.named[record.file]: record.source_sha256 for record in self.records.values()}

    def _compare(self, paths: Sequence[Path], touched: Mapping[str, tuple[int, int]]) -> None:
        """Hash these video shards, compare with their records, and give these the shards' new size and time."""
        if not paths:
            return
        bar = progress_bar("comparing videos whose time changed", 0, len(paths), unit="shard")
        with ThreadPoolExecutor(_HASHERS) as threads, bar:
            for path, sha256 in zip(paths, threads.map(fingerprint, paths), strict=True):
                for record in list(self.of_source(path.name).values()):
                    if sha256 != record.source_sha256:
                        raise InputError(
                            f"{path} was changed after its latents {record.name} were encoded; remove {self.folder} "
                            "and run the same command again"
                        )
                    self._renew(record, *touched[path.name])
                bar.update()

    def _renew(self, record: JobRecord, size: int, mtime_ns: int) -> None:
        renewed = dataclasses.replace(record, source_bytes=size, source_mtime_ns=mtime_ns)
        write_json(record_path(self.folder, record.name), dataclasses.asdict(renewed))
        self.records[record.name] = self._by_source[record.file][record.name] = renewed


def count_of(waiting: Mapping[str, Sequence[str]]) -> int:
    """Number of jobs, given by video shard."""
    return sum(map(len, waiting.values()))


def record_vae(folder: Path, vae: VideoVAE, vae_sha256: str, vae_folder: Path) -> None:
    """Record the VAE of a folder's latents in `encoder.json`, before the first shard.

    Raises InputError where another one is recorded, also one with the same weights and other settings.
    """
    kept = {key: value for key, value in vae.config.items() if not key.startswith(("_", "latents_"))}
    now = json.loads(json.dumps({"vae_sha256": vae_sha256, "vae_config": kept}))
    path = folder / ENCODER
    before = read_object(path) if path.is_file() else now
    if before != now:
        was = str(before.get("vae_sha256"))[:16]
        what = f"({was}...)" if was != vae_sha256[:16] else "(with the same weights and other settings)"
        raise InputError(
            f"{folder} was encoded by another VAE {what} than {vae_folder} ({vae_sha256[:16]}...): use the same in all "
            f"parts, or remove {folder} and run the same command again"
        )
    if not path.is_file():
        write_json(path, now)
