"""What concerns whole folders at a URL: listing all files below one, copying many files at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from odvae.storage.client import call
from odvae.storage.states import FileState, missing_error, says_no_bucket, version_of

T = TypeVar("T")

# Files that are copied at a time.
_THREADS = 16


def list_tree(url: Path) -> dict[str, FileState]:
    """All files below a folder at a URL, by their relative names; none where nothing is there.

    Names with an empty part, `.` or `..` are left out: no folder of a disk could hold them.
    """

    def read(files: Any, name: str) -> tuple[str, dict[str, Any]]:
        files.invalidate_cache()
        return name.rstrip("/"), files.find(name, detail=True)

    try:
        root, found = call(url, read)
    except FileNotFoundError as error:
        if says_no_bucket(error):
            raise missing_error(url, error) from error
        return {}
    tree = {}
    for path, info in found.items():
        name = path.lstrip("/").removeprefix(root.lstrip("/")).removeprefix("/")
        if name and not name.endswith("/") and all(part not in ("", ".", "..") for part in name.split("/")):
            tree[name] = FileState(int(info.get("size") or 0), version_of(info))
    return tree


def in_threads(action: Callable[[T], Any], items: Iterable[T]) -> None:
    """Call `action` for all items, several at a time. Raises the first error, once those that began have ended."""
    with ThreadPoolExecutor(_THREADS) as threads:
        futures = [threads.submit(action, item) for item in items]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
