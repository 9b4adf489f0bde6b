"""What is known of a file without reading it: its size, and a text that tells another version of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from odvae.storage.client import call
from odvae.storage.paths import StorageError, is_remote


class FileState(NamedTuple):
    """A file's size, and a text that is another one when the file was replaced."""

    size: int
    version: str


_states: dict[str, FileState] = {}


def file_state(path: Path, refresh: bool = True) -> FileState:
    """Size and version: of a local file its time of modification, of a remote one its ETag or the like.

    `refresh` False: of a remote file as it was first seen by this process. Raises StorageError, or FileNotFoundError
    for a local one that is missing.
    """
    if not is_remote(path):
        found = path.stat()
        return FileState(found.st_size, str(found.st_mtime_ns))
    if not refresh and str(path) in _states:
        return _states[str(path)]
    try:
        info = call(path, _info)
    except FileNotFoundError as error:
        raise missing_error(path, error) from error
    if info.get("type") == "directory":
        raise StorageError(f"{path} is a folder, not a file")
    if info.get("size") is None:
        raise StorageError(f"{path}: the server does not say its size, so parts of it cannot be read")
    _states[str(path)] = FileState(int(info["size"]), version_of(info))
    return _states[str(path)]


def _info(files: Any, name: str) -> dict[str, Any]:
    files.invalidate_cache()  # some clients keep what they have listed
    return files.info(name)


def find_state(path: Path) -> FileState | None:
    """The `file_state` of a file; None where there is none. Raises StorageError where that cannot be known."""
    if not is_remote(path):
        return file_state(path) if path.is_file() else None
    try:
        return file_state(path)
    except MissingFileError:
        return None


def forget_state(path: Path) -> None:
    """Have a remote file's state requested again, since it was written."""
    _states.pop(str(path), None)


def version_of(info: dict[str, Any]) -> str:
    """A text that is another one when the file was replaced, from what a client says about the file."""
    keys = ("ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "last_modified", "mtime", "updated",
            "created")  # fmt: skip
    for key in keys:
        if value := info.get(key):
            # A time is a date in what some clients say of a file, and a number in their lists.
            return f"{key} {value.timestamp() if hasattr(value, 'timestamp') else value}"
    return "unknown"


class MissingFileError(StorageError):
    """There is no file at a URL."""


def says_no_bucket(error: FileNotFoundError) -> bool:
    """Whether a client says that there is no such bucket, rather than no such file, whose path may have that word."""
    return "bucket" in re.sub(r"\S*/\S*", "", str(error).lower())


def missing_error(path: Path, error: FileNotFoundError) -> StorageError:
    """What to say where a client has found no file, or no bucket."""
    if says_no_bucket(error):
        return StorageError(f"{path}: there is no such bucket ({error})")
    if _states.pop(str(path), None) is not None:
        return MissingFileError(f"{path} is gone: it was there when it was read before")
    return MissingFileError(f"{path} does not exist")
