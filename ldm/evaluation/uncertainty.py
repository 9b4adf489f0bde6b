"""Uncertainty of a distance: its bootstrap interval, and its bias at a finite n, extrapolated to infinite n."""

from __future__ import annotations

import numpy as np

from ldm.metrics import GaussianSums, cubic_kernels, frechet_distance, mmd_squared
from odvae.running.seeds import numpy_generator

LEVEL = 0.95
MIN_VIDEOS = 8  # fewer are too few for a bootstrap interval
SIZES = 5  # points of the curve of distance over number of videos
DRAWS = 4  # random subsets averaged into one point


def frechet_of_features(x: np.ndarray, y: np.ndarray, ddof: int = 1) -> float:
    """The Frechet distance of the Gaussians of features (n, d) and (m, d)."""
    first, second = GaussianSums.of(x), GaussianSums.of(y)
    return frechet_distance(first.mean, first.covariance(ddof), second.mean, second.covariance(ddof))


def frechet_by_count(x: np.ndarray, y: np.ndarray, ddof: int, seed: int) -> list[tuple[int, float]]:
    """The distance of subsets of n videos: [(n, distance)], n from all videos to a third, evenly spaced in 1/n.

    Each distance is the mean over `DRAWS` random subsets of both sets. Sets of equal size get the same indices, so that
    a reconstruction stays with its original.
    """
    largest = min(len(x), len(y))
    curve = []
    for n in sorted({max(2, round(1 / value)) for value in np.linspace(1 / largest, 3 / largest, SIZES)}, reverse=True):
        rng = numpy_generator(seed, "thinned", n)
        values = []
        for _ in range(1 if n == len(x) == len(y) else DRAWS):
            indices_x = rng.permutation(len(x))[:n]
            indices_y = indices_x if len(x) == len(y) else rng.permutation(len(y))[:n]
            values.append(frechet_of_features(x[indices_x], y[indices_y], ddof))
        curve.append((n, float(np.mean(values))))
    return curve


def at_infinity(curve: list[tuple[int, float]]) -> float | None:
    """The limit of a curve of (n, distance): the intercept of a line fitted in 1/n (Chong & Forsyth 2020, equation 4).

    None for fewer than three points. Unreliable where n is below the number of features: the curve is not linear there.
    """
    if len(curve) < 3:
        return None
    inverse = np.array([1 / n for n, _ in curve])
    values = np.array([value for _, value in curve])
    return float(np.polyfit(inverse, values, 1)[1])


def bootstrap_intervals(
    x: np.ndarray, y: np.ndarray, ddof: int, repeats: int, seed: int, paired: bool = False
) -> dict[str, tuple[float, float] | None]:
    """95% intervals of the Frechet and the kernel distance, from `repeats` bootstrap resamplings of both sets (with the
    same indices for sets of equal size, as in `frechet_by_count`). `paired` as in `kernel_distance`.

    Resampling repeats videos, which raises a Frechet distance; so the resampled distances are shifted to have the
    measured distance as their mean, and the interval shows their spread alone. None where `repeats` is 0 or a set has
    fewer than `MIN_VIDEOS` videos.
    """
    if repeats == 0 or min(len(x), len(y)) < MIN_VIDEOS:
        return {"frechet": None, "kernel": None}
    rng = numpy_generator(seed, "bootstrap")
    kernels = cubic_kernels(x, y)
    frechet, kernel = [], []
    for _ in range(repeats):
        chosen_x = rng.integers(0, len(x), len(x))
        chosen_y = chosen_x if len(x) == len(y) else rng.integers(0, len(y), len(y))
        frechet.append(frechet_of_features(x[chosen_x], y[chosen_y], ddof))
        counts_x, counts_y = (
            np.bincount(chosen, minlength=n).astype(float) for chosen, n in ((chosen_x, len(x)), (chosen_y, len(y)))
        )
        kernel.append(mmd_squared(kernels, counts_x, counts_y, paired))
    measured = {
        "frechet": frechet_of_features(x, y, ddof),
        "kernel": mmd_squared(kernels, np.ones(len(x)), np.ones(len(y)), paired),
    }
    return {
        name: _interval(measured[name], np.array(values)) for name, values in (("frechet", frechet), ("kernel", kernel))
    }


def _interval(measured: float, resampled: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - resampled.mean() + measured
    return float(low), float(high)
