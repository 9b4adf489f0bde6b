"""Listing of the files in a folder, by path or URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odvae.storage.client import call
from odvae.storage.paths import StorageError, is_remote
from odvae.storage.states import FileState, MissingFileError, file_state, missing_error, version_of


def list_files(folder: Path) -> list[Path]:
    """The files in a folder, sorted by name; not those in its sub-folders. Raises StorageError, or OSError for a local
    one, where there is no such folder."""
    if not is_remote(folder):
        return sorted(path for path in folder.iterdir() if path.is_file())
    return [folder / name for name in list_states(folder)]


def list_states(folder: Path) -> dict[str, FileState]:
    """Name -> state of the files in a folder, as `list_files`; at a URL with one request for a thousand.

    The size is -1 where the list of a web server does not say it.
    """
    if not is_remote(folder):
        return {path.name: file_state(path) for path in sorted(folder.iterdir()) if path.is_file()}

    def read(files: Any, name: str) -> tuple[str, list[dict[str, Any]]]:
        files.invalidate_cache()
        return name.strip("/"), files.ls(name, detail=True)

    try:
        own, found = call(folder, read)
    except FileNotFoundError as error:
        raise missing_error(folder, error) from error
    files = [one for one in found if one.get("type") == "file"]
    # An empty object with the folder's own name, ending in "/", stands for the folder in some tools.
    inside = [one for one in files if one["name"].strip("/") != own]
    if len(inside) < len(found) == 1 and found[0].get("size"):
        raise StorageError(f"{folder} is a file, not a folder")
    states = {one["name"].rpartition("/")[2]: one for one in inside}
    return {name: _state(states[name]) for name in sorted(states) if name}


def _state(info: dict[str, Any]) -> FileState:
    size = info.get("size")
    return FileState(-1 if size is None else int(size), version_of(info))


def list_names(folder: Path) -> set[str]:
    """The names of the files in a folder; none where there is no such folder."""
    try:
        return {path.name for path in list_files(folder)}
    except (FileNotFoundError, NotADirectoryError, MissingFileError):
        return set()
