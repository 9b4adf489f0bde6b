"""The time limit of a worker process: a kernel timer that ends the process, also inside C code."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


def set_time_limit(seconds: float) -> float:
    """End this process after so many seconds; 0: never. Returns what was left of the limit before."""
    return signal.setitimer(signal.ITIMER_REAL, seconds)[0]


@contextlib.contextmanager
def time_limit_paused() -> Iterator[None]:
    """Within it, the time does not count. Without a limit, nothing happens."""
    left = set_time_limit(0)
    try:
        yield
    finally:
        if left:
            set_time_limit(left)
