"""OUT of a packing, a folder of this machine or at a URL: what is there, its small files, its shards.

At a URL each shard is written on the machine that packs it, uploaded after its index, and removed here; what a command
needs to go on is kept in a working copy (`odvae.storage.mirror`) and uploaded as the shards are. So the disk holds two
shards beside the files that are examined.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odvae.running.files import remove_leftovers, temporary_path
from odvae.shards.facts_journal import shard_index_path
from odvae.storage.files import atomic_file, local_copy
from odvae.storage.paths import is_remote, work_folder
from odvae.storage.states import find_state
from odvae.storage.trees import in_threads, list_tree
from odvae.storage.whole_files import remove, upload


def base_of(out: Path) -> Path:
    """The folder of this machine in which the state of a packing is."""
    return work_folder(out) if is_remote(out) else out


def is_empty(out: Path) -> bool:
    """Whether OUT does not exist or has nothing in it."""
    if is_remote(out):
        return not list_tree(out)
    return not out.exists() or not any(out.iterdir())


def find_file(path: Path) -> Path | None:
    """A file in OUT, or a copy of one at a URL; None where there is none."""
    if not is_remote(path):
        return path if path.is_file() else None
    return None if find_state(path) is None else local_copy(path)


def write_small(path: Path, value: Any) -> None:
    """Write a JSON file into OUT, whole or not at all."""
    with atomic_file(path) as file:
        file.write(f"{json.dumps(value, indent=1)}\n".encode())


def remove_file(path: Path) -> None:
    """Remove a file of OUT, if it is there."""
    if is_remote(path):
        remove(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder(out: Path, name: str) -> None:
    """Remove a folder of OUT, and its working copy."""
    if is_remote(out):
        in_threads(remove, [out / name / one for one in list_tree(out / name)])
    shutil.rmtree(base_of(out) / name, ignore_errors=True)


def remove_shard(out: Path, name: str) -> None:
    """Remove a shard and its index."""
    remove_file(out / name)
    remove_file(shard_index_path(out, name))


@contextlib.contextmanager
def shard_place(shard: Path) -> Iterator[Path]:
    """Where a shard of OUT is to be written, with its index beside it. At the end of the block it is in OUT.

    Raises StorageError where it cannot be uploaded; nothing of it is there then but perhaps its index.
    """
    if not is_remote(shard):
        yield shard
        return
    work = work_folder(shard.parent)
    work.mkdir(parents=True, exist_ok=True)
    remove_leftovers(work, dead_only=True)
    place = temporary_path(work / shard.name)
    place.mkdir()
    try:
        yield place / shard.name
        upload(shard_index_path(place, shard.name), shard_index_path(shard.parent, shard.name))
        upload(place / shard.name, shard)
    finally:
        shutil.rmtree(place, ignore_errors=True)
