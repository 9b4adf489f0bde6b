"""Search for keys that several samples of a folder have, with eight bytes a sample and no object for each."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from odvae.running.errors import InputError
from odvae.running.hashing import checksum
from odvae.storage.files import local_copy

# Shards that `make_shards` has packed as one of several parts, and its keys, which are hashes of the files' bytes.
_PART = re.compile(r"part(\d{3,})-")
_KEY_OF_BYTES = re.compile(rb"[0-9a-f]{16}(?:\+\d{3,})?")


def find_copies(shards: Sequence[Path], indexes: Sequence[Path]) -> dict[int, np.ndarray]:
    """Number of a shard -> its rows that are copies of samples in earlier shards. `indexes` are those of the shards.

    Only parts of a packing may have the same file, as each part sees its own files alone. Raises InputError if any
    other two samples have the same key.
    """
    hashes = [_hashes(index) for index in indexes]
    ordered = np.concatenate([np.zeros(0, np.uint64), *hashes])
    ordered.sort()
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    copies: dict[int, list[int]] = {}
    seen: dict[bytes, Path] = {}
    for number, (shard, index, its_hashes) in enumerate(zip(shards, indexes, hashes, strict=True)):
        if not len(repeated):
            break
        suspects = np.flatnonzero(np.isin(its_hashes, repeated)).tolist()
        keys = _keys(index) if suspects else []
        for row in suspects:
            if (other := seen.setdefault(keys[row], shard)) is shard:
                continue
            if not _are_of_two_parts(other, shard) or not _KEY_OF_BYTES.fullmatch(keys[row]):
                raise InputError(f"key {os.fsdecode(keys[row])} is in {other} and in {shard}")
            copies.setdefault(number, []).append(row)
    return {number: np.array(rows) for number, rows in copies.items()}


def _are_of_two_parts(one: Path, other: Path) -> bool:
    numbers = [found[1] if (found := _PART.match(shard.name)) else None for shard in (one, other)]
    return None not in numbers and numbers[0] != numbers[1]


def _hashes(index: Path) -> np.ndarray:
    keys = _keys(index)
    return np.fromiter(map(checksum, keys), np.uint64, len(keys))


def _keys(index: Path) -> list[bytes]:
    with pa.memory_map(os.fspath(local_copy(index))) as mapped:
        reader = pa.ipc.open_file(mapped)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        return [key for batch in batches for key in batch.column("key").to_pylist()]
