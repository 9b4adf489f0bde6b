"""Whole files at a URL: writing, removing, hashing them, and having one on the local disk for a while."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from odvae.running.files import temporary_path
from odvae.running.hashing import file_fingerprint
from odvae.storage.client import call
from odvae.storage.files import download, read_range
from odvae.storage.paths import StorageError, is_remote, is_web_server, work_folder
from odvae.storage.states import file_state, forget_state, missing_error

_PIECE = 16 << 20


def upload(path: Path, url: Path) -> None:
    """Copy a file of this machine to a URL, where it appears when all of it is there.

    Raises StorageError that names the URL where it cannot be written; what is there already does not change.
    """
    if is_web_server(url):
        raise StorageError(f"{url}: nothing can be written to a web server; write to a path, s3://, gs:// or hf://")
    try:
        call(url, lambda files, name: files.put_file(os.fspath(path), name))
    except FileNotFoundError as error:
        if not path.exists():
            raise
        raise missing_error(url, error) from error
    forget_state(url)


def remove(url: Path) -> None:
    """Remove a file at a URL, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        call(url, lambda files, name: files.rm_file(name))
    forget_state(url)


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """A file of this machine with the bytes of a file: itself, or for one at a URL a copy that the block removes."""
    if not is_remote(path):
        yield path
        return
    place = work_folder(path.parent)
    place.mkdir(parents=True, exist_ok=True)
    copy = temporary_path(place / path.name)
    try:
        download(path, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """The sha256 of a file. One at a URL is read through the cache, where those who read parts of it then find them."""
    if not is_remote(path):
        return file_fingerprint(path)
    digest, size = hashlib.sha256(), file_state(path).size
    for offset in range(0, size, _PIECE):
        digest.update(read_range(path, offset, min(_PIECE, size - offset)))
    return digest.hexdigest()


def identity(path: Path) -> tuple[int, int]:
    """Size of a file, and a number by which another version of it is recognized: the modification time in ns, or for a
    file at a URL a number made of what its server calls the version."""
    state = file_state(path)
    if not is_remote(path):
        return state.size, int(state.version)
    return state.size, int.from_bytes(hashlib.sha256(state.version.encode()).digest()[:7], "big")
