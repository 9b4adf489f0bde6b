"""Conversion of all decoding errors to VideoError, so that a broken file costs only that file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from odvae.running.errors import InputError, MemoryLimitError, is_out_of_memory


class VideoError(InputError):
    """A file cannot be read as a video or an image; the message has its name and the reason."""


@contextlib.contextmanager
def decoding(name: str, what: str = "decoded as a video") -> Iterator[None]:
    """Within it every exception becomes a VideoError "NAME: cannot be WHAT (reason)", except InputErrors.

    Files are untrusted, and decoders raise exceptions of many types: for a tag that is not UTF-8, a frame rate of zero,
    a struct that ends too early. None of them may end a run. The block must contain nothing but work on the file.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryLimitError(f"{name}: needs more memory than is allowed") from error
        raise VideoError(f"{name}: cannot be {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """One short line without addresses of objects, so that it is the same in every run."""
    words = getattr(error, "strerror", None)
    if words:
        return str(words)
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line[:200]}" if first_line else type(error).__name__
