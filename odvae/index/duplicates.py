"""Search for keys that several samples of a folder have, with eight bytes a sample and no object for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from odvae.running.errors import InputError
from odvae.running.hashing import checksum


def check_unique_keys(shards: Sequence[Path], indexes: Sequence[Path]) -> None:
    """Raise InputError if two samples have the same key. `indexes` are those of the shards."""
    hashes = [_hashes(index) for index in indexes]
    ordered = np.sort(np.concatenate([np.zeros(0, np.uint64), *hashes]))
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return
    seen: dict[bytes, Path] = {}
    for shard, index, its_hashes in zip(shards, indexes, hashes, strict=True):
        suspects = np.flatnonzero(np.isin(its_hashes, repeated)).tolist()
        keys = _keys(index) if suspects else []
        for row in suspects:
            if (other := seen.setdefault(keys[row], shard)) is not shard:
                raise InputError(f"key {os.fsdecode(keys[row])} is in {other} and in {shard}")


def _hashes(index: Path) -> np.ndarray:
    keys = _keys(index)
    return np.fromiter(map(checksum, keys), np.uint64, len(keys))


def _keys(index: Path) -> list[bytes]:
    with pa.memory_map(os.fspath(index)) as mapped:
        reader = pa.ipc.open_file(mapped)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        return [key for batch in batches for key in batch.column("key").to_pylist()]
