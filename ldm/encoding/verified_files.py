"""Which files of a folder of latents were verified: recorded as each is done, so that a long verification can go on."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from odvae.index.shard_rows import ShardState, shard_state
from odvae.running.errors import InputError
from odvae.running.files import read_json_lines
from odvae.shards.facts_journal import local_places
from odvae.storage.paths import is_remote

T = TypeVar("T")
R = TypeVar("R")

VERIFIED = ".verified.jsonl"


class VerifiedFiles:
    """`.verified.jsonl` in a folder of latents, or in the user's cache folder where it is read-only or at a URL: a line
    a file.

    A damaged record is as none. Where it cannot be written, nothing is recorded.
    """

    def __init__(self, folder: Path) -> None:
        self._places = [place / VERIFIED for place in local_places(folder)]
        self._known: dict[str, Any] = {}
        for path in self._places:
            with contextlib.suppress(InputError):
                for row in read_json_lines(path) if path.is_file() else []:
                    self._known[str(row.get("path"))] = row.get("of")

    def has(self, path: Path, sha256: str) -> bool:
        """Whether the file had this hash when it had its present size and modification time."""
        return self._known.get(_absolute(path)) == [*shard_state(path), sha256]

    def add(self, path: Path, state: ShardState, sha256: str) -> None:
        """Record that a file in this state has this hash."""
        line = json.dumps({"path": _absolute(path), "of": [*state, sha256]})
        for place in self._places:
            with contextlib.suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                with open(place, "a+b") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(0, size - 1))
                    cut = size > 0 and file.read(1) != b"\n"  # a line that a killed process did not finish
                    file.write(b"\n" * cut + line.encode() + b"\n")
                return


def _absolute(path: Path) -> str:
    return str(path if is_remote(path) else path.resolve())


def in_processes(function: Callable[[T], R], items: Sequence[T], processes: int) -> Iterator[R]:
    """The results of `function` for each item, in order, computed in so many forked processes; 1: in this one."""
    if processes == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork")  # which passes `function` on as it is
    pool = ProcessPoolExecutor(processes, context, _set_function, (function,))
    try:
        yield from pool.map(_call_function, items)
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any]


def _set_function(function: Callable[[Any], Any]) -> None:
    global _function  # of this worker process
    _function = function


def _call_function(item: Any) -> Any:
    return _function(item)
