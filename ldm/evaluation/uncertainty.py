"""How sure a distance is: its bootstrap interval, and its bias from the number of videos, extrapolated away."""

from __future__ import annotations

import numpy as np

from ldm.metrics import GaussianSums, cubic_kernels, frechet_distance, mmd_squared
from odvae.running.seeds import numpy_generator

LEVEL = 0.95
FEWEST = 8  # fewer videos say nothing of their own spread
SIZES = 5  # points of the curve of distance over number of videos
DRAWS = 4  # random subsets that make one point


def frechet_of_features(x: np.ndarray, y: np.ndarray, ddof: int = 1) -> float:
    """The Frechet distance of the Gaussians of features (n, d) and (m, d)."""
    first, second = GaussianSums.of(x), GaussianSums.of(y)
    return frechet_distance(first.mean, first.covariance(ddof), second.mean, second.covariance(ddof))


def frechet_by_count(x: np.ndarray, y: np.ndarray, ddof: int, seed: int) -> list[tuple[int, float]]:
    """The distance at smaller numbers of videos, evenly spaced in 1/n: [(n, distance)], n from all down to a third.

    Both sets are thinned to n random members, `DRAWS` times, and the value is the mean. Sets of one size are thinned to
    the same places: a reconstruction stays beside its original.
    """
    most = min(len(x), len(y))
    curve = []
    for n in sorted({max(2, round(1 / value)) for value in np.linspace(1 / most, 3 / most, SIZES)}, reverse=True):
        rng = numpy_generator(seed, "thinned", n)
        values = []
        for _ in range(1 if n == len(x) == len(y) else DRAWS):
            places_x = rng.permutation(len(x))[:n]
            places_y = places_x if len(x) == len(y) else rng.permutation(len(y))[:n]
            values.append(frechet_of_features(x[places_x], y[places_y], ddof))
        curve.append((n, float(np.mean(values))))
    return curve


def at_infinity(curve: list[tuple[int, float]]) -> float | None:
    """What a curve of (n, distance) tends to: the intercept of a line in 1/n (Chong & Forsyth 2020, equation 4).

    None for fewer than three points. A guess where n is below the number of features: the curve is no line there.
    """
    if len(curve) < 3:
        return None
    inverse = np.array([1 / n for n, _ in curve])
    values = np.array([value for _, value in curve])
    return float(np.polyfit(inverse, values, 1)[1])


def bootstrap_intervals(
    x: np.ndarray, y: np.ndarray, ddof: int, repeats: int, seed: int, paired: bool = False
) -> dict[str, tuple[float, float] | None]:
    """95% intervals of the Frechet and the kernel distance, from `repeats` resamplings of both sets (in pairs where
    they are of one size, as `frechet_by_count`). `paired` as for `kernel_distance`.

    Resampling repeats videos, which moves a Frechet distance up; so the resampled distances are shifted to have the
    distance itself as their mean, and the interval shows their spread alone. None where repeats is 0 or a set has
    fewer than `FEWEST` members.
    """
    if repeats == 0 or min(len(x), len(y)) < FEWEST:
        return {"frechet": None, "kernel": None}
    rng = numpy_generator(seed, "bootstrap")
    kernels = cubic_kernels(x, y)
    frechet, kernel = [], []
    for _ in range(repeats):
        chosen_x = rng.integers(0, len(x), len(x))
        chosen_y = chosen_x if len(x) == len(y) else rng.integers(0, len(y), len(y))
        frechet.append(frechet_of_features(x[chosen_x], y[chosen_y], ddof))
        counts = (
            np.bincount(chosen, minlength=n).astype(float) for chosen, n in ((chosen_x, len(x)), (chosen_y, len(y)))
        )
        kernel.append(mmd_squared(kernels, *counts, paired))
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
