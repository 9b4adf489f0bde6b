"""A claim that a study tests, and its verdict: it holds only where the interval of what was measured says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ldm.evaluation.intervals import Interval

Verdict = Literal["holds", "does not hold", "not separable", "open"]


@dataclass(frozen=True)
class Claim:
    """One claim. `wanted` states when it holds, with its source's value where there is one; `verdict` is "open" where
    what it needs was not measured."""

    claim: str
    wanted: str
    measured: str
    verdict: Verdict


def verdict_of(interval: Interval | None, at_least: float = -math.inf, at_most: float = math.inf) -> Verdict:
    """Whether a value is between two bounds, given its interval: (x, x) of an exact one, None where it is not known."""
    if interval is None:
        return "open"
    low, high = interval
    if at_least <= low and high <= at_most:
        return "holds"
    return "does not hold" if high < at_least or low > at_most else "not separable"


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a claim with several parts."""
    for verdict in ("does not hold", "open", "not separable"):
        if verdict in verdicts:
            return verdict
    return "holds"


def between(interval: Interval | None, digits: int = 2, unit: str = "") -> str:
    """An interval in words, for a table."""
    if interval is None:
        return "(no interval)"
    low, high = interval
    return f"({low:+.{digits}f} to {high:+.{digits}f}{unit})"
