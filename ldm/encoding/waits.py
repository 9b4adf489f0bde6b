"""What an encoding waits for: decoding, the VAE, the text encoder, the disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")

_PHRASES = {"decode": "decoding", "vae": "the VAE", "text": "the text encoder", "disk": "the disk"}


class Waits:
    """Seconds for which the thread that fills and writes the batches waited, by cause: decode, vae, text, disk.

    It does one thing at a time, so the causes' shares and that of its own work add up to 1, and the largest is where
    more resources help: `data.workers`, the device, or the storage.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(_PHRASES, 0.0)
        self._begin = time.perf_counter()

    @contextlib.contextmanager
    def of(self, cause: str) -> Iterator[None]:
        """Within it the thread waits for `cause`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[cause] += time.perf_counter() - begin

    @contextlib.contextmanager
    def at_end_of(self, context: AbstractContextManager[T], cause: str) -> Iterator[T]:
        """`context`, whose end takes time for `cause`."""
        begin = time.perf_counter()
        try:
            with context as value:
                yield value
                begin = time.perf_counter()
        finally:
            self.seconds[cause] += time.perf_counter() - begin

    def divide(self, seconds: float, work: Mapping[str, float]) -> None:
        """Count a wait for work of several kinds, divided by the seconds that each took."""
        total = sum(work.values())
        for cause, share in work.items():
            self.seconds[cause] += seconds * share / total if total else 0.0

    def shares(self) -> dict[str, float]:
        """Shares of the time since the beginning; `own` is what is left, the thread's own work."""
        total = time.perf_counter() - self._begin
        shares = {cause: round(seconds / total, 4) for cause, seconds in self.seconds.items()}
        return shares | {"own": round(max(0.0, 1 - sum(shares.values())), 4)}


def describe_waits(shares: Mapping[str, float]) -> str:
    """Shares of `Waits.shares` as text."""
    return ", ".join(f"{phrase} {shares[cause]:.1%}" for cause, phrase in _PHRASES.items())
