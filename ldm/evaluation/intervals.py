"""95% intervals of shares, means and medians, and of their differences: is a comparison more than chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from odvae.running.seeds import numpy_generator

Interval = tuple[float, float]

Z = 1.959964  # of the standard normal distribution, two-sided 95%
RESAMPLINGS = 4000


def share_interval(share: float, n: int) -> Interval:
    """The interval of a share of `n` independent trials (Wilson 1927).

    A mean of several shares of the same trials lies in it at least as often, since its variance is not larger.
    """
    center, squared = share + Z * Z / (2 * n), Z * Z / n
    half = Z * math.sqrt(share * (1 - share) / n + squared / (4 * n))
    return max(0.0, (center - half) / (1 + squared)), min(1.0, (center + half) / (1 + squared))


def difference_of_shares(ours: float, theirs: float, n_ours: int, n_theirs: int) -> Interval:
    """The interval of the difference of two independent shares, ours - theirs (Newcombe 1998, method 10)."""
    (low, high), (their_low, their_high) = share_interval(ours, n_ours), share_interval(theirs, n_theirs)
    difference = ours - theirs
    return (
        difference - math.hypot(ours - low, their_high - theirs),
        difference + math.hypot(high - ours, theirs - their_low),
    )


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The bootstrap interval of mean(ours - theirs), scores of the same clips in the same order.

    Raises ValueError for lists of different lengths, or of fewer than two clips.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"expected scores of the same clips, at least two; got {len(ours)} and {len(theirs)}")
    differences = np.subtract(ours, theirs)
    chosen = numpy_generator(0, "paired", len(ours)).integers(0, len(ours), (RESAMPLINGS, len(ours)))
    return _quantiles(differences[chosen].mean(1))


def known_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """`paired_difference`; None where these are not scores of the same two or more clips."""
    return paired_difference(ours, theirs) if len(ours) == len(theirs) > 1 else None


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The bootstrap interval of median(ours) / median(theirs), of independent positive values such as seconds."""
    rng = numpy_generator(0, "ratio", len(ours), len(theirs))
    medians = [
        np.median(np.asarray(values)[rng.integers(0, len(values), (RESAMPLINGS, len(values)))], axis=1)
        for values in (ours, theirs)
    ]
    return _quantiles(medians[0] / medians[1])


def _quantiles(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
