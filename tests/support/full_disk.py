"""A small disk that is full at any byte, and the check of what stages do when they meet its end."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from odvae.running.errors import InputError, readable_storage_error

PAGE = 4096


class SmallDisk:
    """A file system in memory at `path`; `leave` fills it."""

    def __init__(self, path: Path) -> None:
        self.path, self._ballast = path, path / ".ballast"

    def leave(self, size: int | None) -> None:
        """Have so many bytes left, in pages of 4 KiB; None: all that there are."""
        self._ballast.unlink(missing_ok=True)
        if size is not None:
            with open(self._ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(1 << 16)):
                    pass
            taken = self._ballast.stat().st_size
            with open(self._ballast, "r+b") as file:
                file.truncate(max(0, taken - size))


@contextlib.contextmanager
def small_disk(path: Path, mib: int) -> Iterator[SmallDisk]:
    """A disk of this size at a folder. The test is skipped where file systems cannot be mounted."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a file system ({mounted.stderr.decode().strip()})")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def stopped_by_the_full_disk(disk: SmallDisk, action: Callable[[], object], growth: float = 1.5) -> list[str]:
    """Do something again and again, each time with more space, until it ends; returns what was said each time.

    Each time it must name what could not be written, and leave nothing incomplete.
    """
    said, left = [], 0
    while True:
        disk.leave(left)
        try:
            action()
        except (InputError, OSError) as error:
            said.append(message_of(error, disk))
        else:
            disk.leave(None)
            return said
        finally:
            assert list(disk.path.rglob("*.partial")) == []
        left = max(left + PAGE, int(left * growth) // PAGE * PAGE)


def message_of(error: Exception, disk: SmallDisk) -> str:
    message = readable_storage_error(error) if isinstance(error, OSError) else str(error)
    assert message is not None, repr(error)
    assert str(disk.path) in message, message
    assert any(words in message for words in _WHAT_TO_DO), message
    return message


# The second and third are said before anything is written.
_WHAT_TO_DO = ("run the same command again", "cannot write into output folder", "can be written neither into")
