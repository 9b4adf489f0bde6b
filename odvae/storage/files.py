"""Reading, writing and listing of files by path or URL (`open_path`)."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from odvae.running.files import atomic_file as atomic_local_file
from odvae.storage.cache import cache
from odvae.storage.client import CutBodyError, call
from odvae.storage.paths import StorageError, is_remote

# Remote files are read and kept in blocks of this size.
BLOCK = 1 << 20

# Requests of `prefetch_range` at a time.
_PREFETCHING = 8

# Bytes of one request while a whole file is copied.
_PIECE = 64 << 20


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
        info = call(path, lambda files, name: files.info(name))
    except FileNotFoundError as error:
        raise missing_error(path, error) from error
    if info.get("type") == "directory":
        raise StorageError(f"{path} is a folder, not a file")
    if info.get("size") is None:
        raise StorageError(f"{path}: the server does not say its size, so parts of it cannot be read")
    _states[str(path)] = FileState(int(info["size"]), version_of(info))
    return _states[str(path)]


def version_of(info: dict[str, Any]) -> str:
    """A text that is another one when the file was replaced, from what a client says about the file."""
    keys = ("ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "last_modified", "mtime", "updated",
            "created")  # fmt: skip
    key = next((key for key in keys if info.get(key)), None)
    if key is None:
        return "unknown"
    value = info[key]  # of a file in memory a time, in a listing its seconds
    return f"{key} {value.timestamp() if isinstance(value, datetime) else value}"


def missing_error(path: Path, error: FileNotFoundError) -> StorageError:
    """What to say where a client has found no file, or no bucket."""
    if "bucket" in str(error).lower():
        return StorageError(f"{path}: there is no such bucket ({error})")
    if _states.pop(str(path), None) is not None:
        return StorageError(f"{path} is gone: it was there when it was read before")
    return StorageError(f"{path} does not exist")


def read_range(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on; fewer where the file ends before. Remote ones are kept in the cache.

    Raises StorageError for a remote file that cannot be read, OSError for a local one.
    """
    if not is_remote(path):
        return os.pread(open_now(path).fileno(), size, offset)
    state = file_state(path, refresh=False)
    end = min(offset + size, state.size)
    if offset >= end:
        return b""
    first, last = offset // BLOCK, (end - 1) // BLOCK
    blocks = _blocks(path, state, first, last)
    start = offset - first * BLOCK
    return b"".join(blocks)[start : start + end - offset]


def _blocks(path: Path, state: FileState, first: int, last: int) -> list[bytes]:
    kept = cache()

    def place(block: int) -> Path:
        return kept.path(str(path), f"{state.size} {state.version}", f"{block}.block")

    found = {i: kept.get(place(i), min(BLOCK, state.size - i * BLOCK)) for i in range(first, last + 1)}
    missing = [i for i, data in found.items() if data is None]
    while missing:
        run = [missing.pop(0)]
        while missing and missing[0] == run[-1] + 1:  # neighbors come with one request
            run.append(missing.pop(0))
        data = _fetch(path, run[0] * BLOCK, min((run[-1] + 1) * BLOCK, state.size))
        for number, i in enumerate(run):
            found[i] = data[number * BLOCK : (number + 1) * BLOCK]
            kept.put(place(i), found[i] or b"")
    return [found[i] or b"" for i in range(first, last + 1)]


def _fetch(path: Path, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a remote file, which has them."""

    def read(files: Any, name: str) -> bytes:
        data = files.cat_file(name, start=start, end=end)
        if len(data) < end - start:
            raise CutBodyError(len(data), end - start)
        if len(data) > end - start:
            raise StorageError(f"{path}: asked for {end - start} bytes, the server sent {len(data)}; it must serve "
                               "ranges")  # fmt: skip
        return data

    try:
        return call(path, read)
    except FileNotFoundError as error:
        raise missing_error(path, error) from error


def prefetch_range(path: Path, offset: int, size: int) -> None:
    """Have bytes read in the background, before a call of `read_range`: into the cache, or by the operating system.

    What fails is not said here: the call of `read_range` meets it again.
    """
    if not is_remote(path):
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(open_now(path).fileno(), offset, size, os.POSIX_FADV_WILLNEED)
        return
    if _threads.get("process") != os.getpid():  # a forked child has none of its parent's threads
        _threads.update(process=os.getpid(), pool=ThreadPoolExecutor(_PREFETCHING, "prefetch"))
    _threads["pool"].submit(read_range, path, offset, size)


_threads: dict[str, Any] = {}


@functools.lru_cache(maxsize=128)
def _open_file(path: Path, _identity: tuple[int, ...]) -> BinaryIO:
    return open(path, "rb", buffering=0)  # closed when it leaves the cache


def open_now(path: Path) -> BinaryIO:
    """A local file, kept open for the next read: opening a file can take longer than reading it."""
    now = os.stat(path)  # a shard that was replaced is a different file with the same name
    return _open_file(path, (now.st_dev, now.st_ino, now.st_mtime_ns))


def local_copy(path: Path) -> Path:
    """A file of this machine with the file's bytes, such as can be memory-mapped: the path itself, or a copy in the
    cache, made where the remote file changed. An opened copy stays readable when the cache removes it."""
    if not is_remote(path):
        return path
    state = file_state(path)
    kept = cache()
    copy = kept.path(str(path), f"{state.size} {state.version}", f"whole-{path.name}")
    if copy.is_file() and copy.stat().st_size == state.size:
        with contextlib.suppress(OSError):
            os.utime(copy)
        return copy
    with kept.writing(copy) as temporary, open(temporary, "wb") as file:
        _download(path, state.size, file)
    return copy


def download(path: Path, target: Path) -> FileState:
    """Copy a remote file to `target`, which appears when it is whole. Returns the state of what was copied."""
    state = file_state(path)
    with atomic_local_file(target) as file:
        _download(path, state.size, file)
    return state


def _download(path: Path, size: int, file: BinaryIO) -> None:
    for start in range(0, size, _PIECE):
        file.write(_fetch(path, start, min(start + _PIECE, size)))


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends without an error; otherwise `path` does not change.

    What goes to a bucket is first written to a local temporary file (TMPDIR): the object appears when all of it is
    there. Raises StorageError where it cannot be written.
    """
    if not is_remote(path):
        with atomic_local_file(path) as file:
            yield file
        return
    if path.protocol in ("http", "https"):  # type: ignore[attr-defined]
        raise StorageError(f"{path}: nothing can be written to a web server; write to a path, s3://, gs:// or hf://")
    with tempfile.NamedTemporaryFile(prefix="odvae-upload-") as file:
        yield file  # type: ignore[misc]
        file.flush()
        try:
            call(path, lambda files, name: files.put_file(file.name, name))
        except FileNotFoundError as error:
            raise missing_error(path, error) from error
        _states.pop(str(path), None)


def list_files(folder: Path) -> list[Path]:
    """The files in a folder, sorted by name; not those in its sub-folders. Raises StorageError, or OSError for a local
    one, where there is no such folder."""
    if not is_remote(folder):
        return sorted(path for path in folder.iterdir() if path.is_file())

    def read(files: Any, name: str) -> list[dict[str, Any]]:
        return files.ls(name, detail=True)

    try:
        found = call(folder, read)
    except FileNotFoundError as error:
        raise missing_error(folder, error) from error
    names = {one["name"].rstrip("/").rpartition("/")[2]: one for one in found if one.get("type") == "file"}
    if not str(folder).endswith("/") and list(names) == [folder.name]:
        raise StorageError(f"{folder} is a file, not a folder")
    return [folder / name for name in sorted(names) if name]
