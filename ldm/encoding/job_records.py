"""`shards/NAME.json` in a folder of latents: the record of one encoded shard, from which the manifest is built."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odvae.latent_statistics import ChannelSums
from odvae.running.account import Account
from odvae.running.errors import InputError
from odvae.running.files import parse_record, read_object

# The precision of shards whose records do not say it.
UNKNOWN_PRECISION = "unknown"

# Values of the keys that records of earlier versions lack: such a record's video shard is planned, and hashed, again.
_UNKNOWN: dict[str, Any] = {
    "source_bytes": -1,
    "source_mtime_ns": -1,
    "of_source": [],
    "too_short": [],
    "videos": 0,
    "unmirrored": 0,
    "precision": UNKNOWN_PRECISION,
}

# Threads that read records: on a network's file system each takes milliseconds, mostly of waiting.
_READERS = 8


@dataclass(frozen=True)
class JobRecord:
    """What was encoded into one shard; the keys that a manifest's `ShardRecord` has too mean the same."""

    name: str
    sha256: str
    bytes: int
    entries: int
    train_entries: int
    bucket: str
    source: str
    source_sha256: str
    source_bytes: int
    source_mtime_ns: int
    """Size and modification time of the video shard: where they are unchanged, it is not hashed again."""
    source_entries: int
    of_source: list[str]
    """Names of the latent shards of all buckets of the same video shard."""
    too_short: list[str]
    """Keys of the video shard's videos that are too short for every bucket."""
    videos: int
    """Videos of which clips were to be encoded."""
    unmirrored: int
    """Those of which no clip was to be mirrored."""
    captioned_entries: int
    captioned_train_entries: int
    captions: int
    entries_by_class: dict[str, int]
    failed: dict[str, str]
    account: dict[str, Any]
    shape: list[int]
    vae_sha256: str
    precision: str
    """In which the VAE encoded: bf16, fp32, or UNKNOWN_PRECISION."""
    sums: dict[str, Any] | None
    """`ChannelSums` of the training entries."""

    @property
    def file(self) -> str:
        """Name of the video shard's file."""
        return Path(self.source).name


def read_job_record(path: Path) -> JobRecord:
    """A record. Raises InputError that names the file where it was damaged."""
    record = parse_record(JobRecord, _UNKNOWN | read_object(path), path)
    try:
        Account.from_json(record.account)
        if record.sums is not None:
            ChannelSums.from_json(record.sums)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path} was damaged: its account or sums cannot be read ({error})") from None
    return record


def read_job_records(folder: Path) -> dict[str, JobRecord]:
    """The records in a folder of latents, by the names of their shards."""
    paths = sorted((folder / "shards").glob("*.json"))
    with ThreadPoolExecutor(_READERS) as threads:
        return {record.name: record for record in threads.map(read_job_record, paths)}
