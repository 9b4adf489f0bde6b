"""A bounded cache on the local disk of what was read from elsewhere, shared by the processes of a machine.

Files are written aside and renamed, so a reader sees a whole file or none. What was not used for longest goes first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from odvae.running.errors import InputError
from odvae.running.files import temporary_path
from odvae.running.hashing import checksum

FOLDER = "ODVAE_CACHE"
SIZE = "ODVAE_CACHE_GIB"
DEFAULT_GIB = 32.0

# A block's file has the block, then a checksum for each piece of it, so that parts of a block are read and compared.
_PIECE = 1 << 16
_CHECKSUM = 8  # bytes


class Cache:
    """Blocks and whole files in `folder`, together at most `limit` bytes (plus what each process wrote since it last
    counted: a 64th of it)."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._written = limit  # the first file that is written makes it count

    def path(self, url: str, version: str, name: str) -> Path:
        """Where a part of a file is; another version of the file has other paths."""
        digest = hashlib.sha256(os.fsencode(f"{url}\n{version}")).hexdigest()
        return self.folder / digest[:2] / digest[2:34] / name

    def get(self, path: Path, size: int, start: int = 0, end: int | None = None) -> bytes | None:
        """Bytes `start` to `end` of a block of `size` bytes; None where it is not there or was damaged."""
        end = size if end is None else end
        pieces = -(-size // _PIECE)
        first, last = start // _PIECE, -(-end // _PIECE)  # the pieces with these bytes
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            if os.fstat(file).st_size != size + _CHECKSUM * pieces:
                return None
            data = os.pread(file, min(last * _PIECE, size) - first * _PIECE, first * _PIECE)
            marks = os.pread(file, (last - first) * _CHECKSUM, size + first * _CHECKSUM)
            os.utime(file)
        except OSError:
            return None
        finally:
            os.close(file)
        if _marks(data) != marks:
            return None
        return data[start - first * _PIECE : end - first * _PIECE]

    def put(self, path: Path, block: bytes) -> None:
        """Keep a block. A full or read-only disk is said once, and nothing is kept."""
        with self._said_once(), self.writing(path) as temporary:
            temporary.write_bytes(block + _marks(block))

    def remove(self, path: Path) -> None:
        """Remove what is kept at a path."""
        with contextlib.suppress(OSError):
            path.unlink()

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """A temporary path whose file becomes `path` when the block ends without an error."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        try:
            yield temporary
            size = temporary.stat().st_size
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._written += size
        if self._written > self.limit // 64:
            self.shrink(keep=path)

    def shrink(self, keep: Path | None = None) -> None:
        """Remove what was not used for longest, until the rest is within the limit; `keep` stays."""
        self._written = 0
        files, total = [], 0
        for root, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # another process removed it
                    state = os.stat(os.path.join(root, name))
                    files.append((state.st_mtime_ns, state.st_size, os.path.join(root, name)))
                    total += state.st_size
        for _, size, name in sorted(files):
            if total <= self.limit * 15 // 16:
                return
            if name.endswith(".partial") or name == str(keep):
                continue
            with contextlib.suppress(OSError):
                os.unlink(name)
            total -= size

    @contextlib.contextmanager
    def _said_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.folder not in _said:
                _said.add(self.folder)
                print(f"warning: nothing is kept in the cache {self.folder} ({error.strerror}); what is remote is read "
                      f"again each time. {FOLDER} names another folder", file=sys.stderr, flush=True)  # fmt: skip


def _marks(data: bytes) -> bytes:
    """The checksums of the pieces of a block."""
    view = memoryview(data)
    marks = [checksum(view[i : i + _PIECE]).to_bytes(_CHECKSUM, "little") for i in range(0, len(data), _PIECE)]
    return b"".join(marks)


_said: set[Path] = set()


def cache() -> Cache:
    """The cache of this environment: folder ODVAE_CACHE (default: `odvae/storage` in the user's cache folder), size
    ODVAE_CACHE_GIB. Raises InputError for a size that is not a positive number."""
    return _cache(os.environ.get(FOLDER), os.environ.get(SIZE), os.environ.get("XDG_CACHE_HOME"))


@functools.lru_cache
def _cache(folder: str | None, gib: str | None, user: str | None) -> Cache:
    text = gib or str(DEFAULT_GIB)
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e9:
        raise InputError(f"{SIZE}={text}: expected a size in GiB above 0")
    place = folder or os.path.join(user or str(Path.home() / ".cache"), "odvae", "storage")
    return Cache(Path(place), int(size * 2**30))
