"""`shards/NAME.json` in a folder of latents: the record of one encoded shard, from which the manifest is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from odvae.latent_statistics import ChannelSums
from odvae.running.account import Account
from odvae.running.errors import InputError
from odvae.running.files import parse_record, read_object


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
    source_entries: int
    captioned_entries: int
    captioned_train_entries: int
    captions: int
    entries_by_class: dict[str, int]
    failed: dict[str, str]
    account: dict[str, Any]
    shape: list[int]
    vae_sha256: str
    sums: dict[str, Any] | None
    """`ChannelSums` of the training entries."""


def read_job_record(path: Path) -> dict[str, Any]:
    """The values of a record. Raises InputError that names the file where it was damaged."""
    record = parse_record(JobRecord, read_object(path), path)
    try:
        Account.from_json(record.account)
        if record.sums is not None:
            ChannelSums.from_json(record.sums)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path} was damaged: its account or sums cannot be read ({error})") from None
    return asdict(record)
