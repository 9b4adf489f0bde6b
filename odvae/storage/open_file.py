"""Files and parts of files, of this machine or at a URL, as file objects to read from."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from odvae.storage.files import read_range
from odvae.storage.paths import is_remote
from odvae.storage.states import file_state


class FilePart(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file object. Bytes of a remote one come by way of the cache."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = None if is_remote(path) else open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._path = path
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + position)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(memoryview(buffer)), self._size - self._position))
        view = memoryview(buffer)[:wanted]
        if self._file is not None:
            read = os.preadv(self._file.fileno(), [view], self._offset + self._position)
        else:
            data = read_range(self._path, self._offset + self._position, wanted)
            read = len(data)
            view[:read] = data
        self._position += read
        return read

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def open_file(path: Path) -> io.RawIOBase:
    """A whole file, opened to be read without a buffer. Raises StorageError or OSError where it cannot be."""
    return FilePart(path, 0, file_state(path).size) if is_remote(path) else open(path, "rb", buffering=0)
