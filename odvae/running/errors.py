"""Errors that a user can fix (InputError and its kinds, DivergenceError), printed without a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from safetensors import SafetensorError

# A message's line beyond this many characters is cut in its middle: it quotes a damaged file.
_LONGEST_LINE = 2000


class InputError(ValueError):
    """A file or setting given by the user cannot be used; the message names it, what was found and what is allowed."""

    def __init__(self, message: str = "") -> None:
        super().__init__("\n".join(map(_shortened, str(message).split("\n"))))

    cause: ClassVar[Literal["task", "unfit", "limit", "stop"]] = "task"
    """The `cause` of the `worker_pool.Failure` that this error becomes in a worker process. "stop": it becomes none,
    but ends the work, since what is wrong is not the task's file."""


def _shortened(line: str) -> str:
    if len(line) <= _LONGEST_LINE:
        return line
    kept = _LONGEST_LINE // 2 - 30  # what is shortened is not shortened again
    return f"{line[:kept]} ... ({len(line) - 2 * kept} more characters) ... {line[-kept:]}"


class MemoryLimitError(InputError):
    """A file needs more memory than is allowed."""

    cause = "limit"


class DiskError(InputError):
    """A file cannot be written on this machine, whatever URL it is a copy for."""


class UnfitError(InputError):
    """A file that can be read but is not suitable, such as a video that is shorter than a clip."""

    cause = "unfit"


class DivergenceError(FloatingPointError):
    """A training has diverged: too many steps in a row had a gradient that was not finite."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed memory allocation, which torch raises as a RuntimeError."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


# Errors of the operating system that a user can fix; any other OSError is a bug and keeps its traceback.
STORAGE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
}  # fmt: skip

# What torch.save says when a write fails.
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container.cc", "iostream error")

# What gloo and NCCL say when another process of the launch is gone.
_LOST_CONNECTION = ("gloo/transport", "Connection closed by peer", "remote process exited")


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Within it, input errors, a diverged training, full disks and Ctrl-C end the process with a message in place of a
    traceback.

    Exit status: 130 for an interrupt, 1 for the others and for the end of another rank. A bug keeps its traceback.
    """
    try:
        yield
    except (InputError, DivergenceError) as error:
        _fail(f"error: {error}", 1)
    except OSError as error:
        if (message := readable_storage_error(error)) is None:
            raise
        _fail(f"error: {message}", 1)
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST_CONNECTION):
            raise
        _fail(
            "error: the connection to another process of this launch was lost. If that process ended with an error, "
            f"that error is the cause ({str(error).splitlines()[0][:200]})",
            1,
        )
    except KeyboardInterrupt:
        _fail("interrupted: what was written before is intact; run the same command again to resume.", 130)


def readable_storage_error(error: OSError) -> str | None:
    """The message of an error of the storage that a user can fix, such as a full disk; None for any other."""
    if error.errno not in STORAGE_ERRORS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}. What was written before is intact; run the same command again to resume."


@contextlib.contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """Within it, a failure to write a file or a model names `path`.

    An OSError of a full disk has no file's name; it gets this one. safetensors and torch.save raise errors of their own
    types, which become a DiskError.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in STORAGE_ERRORS:
            error.filename = os.fspath(path)
        raise
    except (SafetensorError, RuntimeError) as error:
        if not isinstance(error, SafetensorError) and not any(words in str(error) for words in _TORCH_CANNOT_WRITE):
            raise
        raise DiskError(
            f"cannot write {path}: {error}. What was written before is intact; run the same command again to resume"
        ) from None


def _fail(message: str, status: int) -> None:
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(status) from None
