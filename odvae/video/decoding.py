"""The guard around every decoding call: whatever goes wrong inside one is named after the file and costs that file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from odvae.running.errors import InputError, MemoryLimitError, is_out_of_memory


class VideoError(InputError):
    """A file that cannot be read as a video or an image; the message names it and says why."""


@contextlib.contextmanager
def decoding(name: str, what: str = "decoded as a video") -> Iterator[None]:
    """Whatever is raised within it becomes a VideoError "NAME: cannot be WHAT (reason)"; InputErrors pass as they are.

    Files come from anywhere, and decoders answer with errors of every type: a tag that is not UTF-8, a division by a
    rate of zero, a struct that ends too early. None of them may end a run. Within it only the file is worked on.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryLimitError(f"{name}: needs more memory than it may have") from error
        raise VideoError(f"{name}: cannot be {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """One short line, without addresses of objects, so that two runs say the same."""
    words = getattr(error, "strerror", None)
    if words:
        return str(words)
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line[:200]}" if first_line else type(error).__name__
