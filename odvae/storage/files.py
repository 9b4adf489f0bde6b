"""Reading and writing of files by path or URL (`open_path`)."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from odvae.running.files import atomic_file as atomic_local_file
from odvae.storage.cache import cache
from odvae.storage.client import CutBodyError, call, time_limit_paused
from odvae.storage.paths import StorageError, is_remote, is_web_server
from odvae.storage.states import FileState, file_state, forget_state, missing_error

# Remote files are read and kept in blocks of this size.
BLOCK = 1 << 20

# Requests of `prefetch_range` at a time.
_PREFETCHING = 8

# Bytes of one request while a whole file is copied.
_PIECE = 64 << 20


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
    places = _places(path, state, first, last)
    parts: dict[int, bytes | None] = {}
    for i, place in places.items():
        own = slice(max(offset - i * BLOCK, 0), min(end - i * BLOCK, BLOCK))  # of the block's bytes
        parts[i] = cache().get(place, _block_size(state, i), own.start, own.stop)
        if parts[i] is None:
            break
    if missing := [i for i in places if parts.get(i) is None]:
        blocks = _fetched(path, state, {i: places[i] for i in missing})
        for i in missing:
            parts[i] = blocks[i][max(offset - i * BLOCK, 0) : end - i * BLOCK]
    return b"".join(parts[i] or b"" for i in places)


def _places(path: Path, state: FileState, first: int, last: int) -> dict[int, Path]:
    """Where the cache has these blocks."""
    folder = cache().path(str(path), f"{state.size} {state.version}", "")
    return {i: folder / f"{i}.block" for i in range(first, last + 1)}


def _block_size(state: FileState, block: int) -> int:
    return min(BLOCK, state.size - block * BLOCK)


# Blocks that a thread of this process reads now, by their place in the cache: no other thread requests them again.
_coming: dict[Path, Future[bytes]] = {}
_coming_lock = threading.Lock()


def _fetched(path: Path, state: FileState, places: Mapping[int, Path]) -> dict[int, bytes]:
    """These blocks: from the cache, from another thread that reads them already, or from the storage."""
    mine, of_others = dict[int, Future[bytes]](), dict[int, Future[bytes]]()
    with _coming_lock:
        for i, place in places.items():
            if place in _coming:
                of_others[i] = _coming[place]
            else:
                mine[i] = _coming[place] = Future()
    try:
        found = _read_blocks(path, state, {i: places[i] for i in mine})
        for i, block in found.items():
            mine[i].set_result(block)
    except BaseException as error:
        for future in mine.values():
            if not future.done():
                future.set_exception(error)
        raise
    finally:
        with _coming_lock:
            for i in mine:
                _coming.pop(places[i], None)
    return found | {i: future.result() for i, future in of_others.items()}


def _read_blocks(path: Path, state: FileState, places: Mapping[int, Path]) -> dict[int, bytes]:
    kept = cache()
    cached = {i: kept.get(place, _block_size(state, i)) for i, place in places.items()}
    found = {i: block for i, block in cached.items() if block is not None}
    missing = [i for i in places if i not in found]
    while missing:
        run = [missing.pop(0)]
        while missing and missing[0] == run[-1] + 1:  # neighbors come with one request
            run.append(missing.pop(0))
        data = _fetch(path, run[0] * BLOCK, min((run[-1] + 1) * BLOCK, state.size))
        for number, i in enumerate(run):
            found[i] = data[number * BLOCK : (number + 1) * BLOCK]
            kept.put(places[i], found[i])
    return found


def reread_range(path: Path, offset: int, size: int) -> bytes:
    """As `read_range`, without the cache: for bytes that are not what was expected.

    Raises StorageError where the file was replaced since this process first saw it.
    """
    known = file_state(path, refresh=False)
    now = file_state(path)
    for state in (known, now):
        for place in _places(path, state, offset // BLOCK, (offset + max(size, 1) - 1) // BLOCK).values():
            cache().remove(place)
    if now != known:
        raise StorageError(f"{path} was replaced while it was read: it had {known.size} bytes ({known.version}), now "
                           f"{now.size} ({now.version})")  # fmt: skip
    return read_range(path, offset, size)


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
        with time_limit_paused():  # of a worker, in which decoding is limited, not waiting for the storage
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
    if "pool" not in _threads:
        _threads["pool"] = ThreadPoolExecutor(_PREFETCHING, "prefetch")
    _threads["pool"].submit(_into_cache, path, offset, size)


def _into_cache(path: Path, offset: int, size: int) -> None:
    state = file_state(path, refresh=False)
    places = _places(path, state, offset // BLOCK, (min(offset + max(size, 1), state.size) - 1) // BLOCK)
    if missing := {i: place for i, place in places.items() if not place.exists()}:
        _fetched(path, state, missing)


_threads: dict[str, ThreadPoolExecutor] = {}


def _forget_threads() -> None:
    """In a forked child, which has none of its parent's threads."""
    global _coming_lock
    _threads.clear()
    _coming.clear()
    _coming_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_threads)


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


def read_file(path: Path) -> bytes:
    """All bytes of a small file, which at a URL are kept in the cache. Raises StorageError, or OSError for a local one,
    where it cannot be read."""
    return local_copy(path).read_bytes()


def download(path: Path, target: Path) -> FileState:
    """Copy a remote file to `target`, which appears when it is whole. Returns the state of what was copied."""
    state = file_state(path)
    with atomic_local_file(target) as file:
        _download(path, state.size, file)
    return state


def _download(path: Path, size: int, file: BinaryIO) -> None:
    for start in range(0, size, _PIECE):
        file.write(_fetch(path, start, min(start + _PIECE, size)))


def make_parent(path: Path) -> None:
    """Make the folder of a file that will be written. In a bucket there are none."""
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)


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
    if is_web_server(path):
        raise StorageError(f"{path}: nothing can be written to a web server; write to a path, s3://, gs:// or hf://")
    with tempfile.NamedTemporaryFile(prefix="odvae-upload-") as file:
        yield file  # type: ignore[misc]
        file.flush()
        try:
            call(path, lambda files, name: files.put_file(file.name, name))
        except FileNotFoundError as error:
            raise missing_error(path, error) from error
        forget_state(path)
