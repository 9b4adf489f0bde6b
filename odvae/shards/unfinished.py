"""Whether the shards of a folder are all there: packing marks the folder until it has written the last one."""

from __future__ import annotations

from pathlib import Path

from odvae.running.text import counted
from odvae.storage.listing import list_files
from odvae.storage.paths import open_path
from odvae.storage.states import find_state

UNFINISHED = "unfinished.json"


def is_unfinished(folder: str | Path) -> bool:
    """Whether shards of the folder are still to come."""
    return find_state(open_path(folder) / UNFINISHED) is not None


def describe_unfinished(folder: str | Path) -> str:
    """That a folder of shards is not finished, with the number of its shards; empty if it is finished."""
    if not is_unfinished(folder):
        return ""
    files = list_files(open_path(folder))
    shards = sum(1 for path in files if path.suffix == ".tar" and not path.name.startswith("."))
    return (
        f"{folder} is not finished: {counted(shards, 'shard')} so far, others are still to come (run make_shards again "
        "to go on)"
    )
