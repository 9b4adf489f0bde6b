"""Failures of tasks and their reasons: counted, printed, and an error if there are too many."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from odvae.running.errors import InputError


@dataclass(frozen=True)
class Failure:
    """The reason why a task has no result."""

    reason: str
    cause: Literal["task", "unfit", "limit", "system"] = "task"
    """"task": it would fail again; "unfit": it succeeds, but its file is not suitable; "limit": of time or memory;
    "system": the process was killed."""


class Failures:
    """Which of `total` things (such as videos) could not be used, and why; each is printed as it occurs.

    `add` raises InputError if more than `share` (`data.failures_allowed`) of them have failed. `prints` False: nothing
    is printed, for a rank whose failures another rank has and prints too.
    """

    def __init__(self, total: int, share: float, what: str, prints: bool = True) -> None:
        self.total, self.share, self.what, self.prints = total, share, what, prints
        self.reasons: dict[str, str] = {}
        self.counted = 0

    def add(self, name: str, reason: str, counts: bool = True) -> None:
        """Record a failure, and count it if `counts`. A second failure of the same thing is ignored."""
        if name in self.reasons:
            return
        self.reasons[name] = reason if reason.startswith(name) else f"{name}: {reason}"
        self.counted += counts
        if self.prints:
            print(f"left out: {self.reasons[name]} ({self._count()} so far)", file=sys.stderr, flush=True)
        self._check()

    def merge(self, reasons: Mapping[str, str]) -> None:
        """Count failures that another rank has printed, its `reasons`, as well."""
        new = {name: reason for name, reason in reasons.items() if name not in self.reasons}
        self.reasons |= new
        self.counted += len(new)
        self._check()

    def _count(self) -> str:
        return f"{self.counted} of {self.total} {self.what}"

    def _check(self) -> None:
        if self.counted > self.share * self.total:
            listed = "".join(f"\n  {reason}" for reason in list(self.reasons.values())[:20])
            raise InputError(
                f"{self._count()} could not be used, more than data.failures_allowed={self.share:g} of them:{listed}"
            )
