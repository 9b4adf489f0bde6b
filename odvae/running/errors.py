"""Errors a person can act on, and how a command ends when one occurs."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from safetensors import SafetensorError


class InputError(ValueError):
    """Something a person gave (a file, a setting) cannot be used; the message names it and what is allowed."""

    cause: ClassVar[Literal["task", "unfit", "limit"]] = "task"
    """What a worker's failure by it means (`worker_pool.Failure`)."""


class MemoryLimitError(InputError):
    """A file needs more memory than it may have."""

    cause = "limit"


class UnfitError(InputError):
    """A file that can be read and still is not what is asked for, such as a video that is shorter than a clip."""

    cause = "unfit"


def is_want_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused; torch says so by a RuntimeError of its own."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


# The operating system's refusals that a person can lift; any other OSError is a bug and keeps its traceback.
_STORAGE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
}  # fmt: skip


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """End the process with one clear line instead of a traceback for input errors, full disks and Ctrl-C.

    Exit status: 1 for an input or storage error, 130 for an interrupt. A bug keeps its traceback.
    """
    try:
        yield
    except InputError as error:
        _fail(f"error: {error}", 1)
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(
            f"error: {where}{error.strerror}. What was written before is intact; run the same command again to go on.",
            1,
        )
    except KeyboardInterrupt:
        _fail("interrupted: what was written before is intact; run the same command again to go on.", 130)


@contextlib.contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """Within it, a model file that cannot be written is an InputError with its path.

    safetensors and torch.save report a full disk by errors of their own, not by OSError.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if not isinstance(error, SafetensorError) and "PytorchStreamWriter" not in str(error):
            raise
        raise InputError(
            f"cannot write {path}: {error}. What was written before is intact; run the same command again to go on"
        ) from None


def _fail(message: str, status: int) -> None:
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(status) from None
