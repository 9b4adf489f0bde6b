"""Generation metrics as pure functions of features: Frechet distance, kernel distance, inception score.

All in float64. Confidence intervals and the extrapolation over n are in `ldm/evaluation/uncertainty.py`.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

import numpy as np

from odvae.running.errors import InputError

CHUNK = 4096  # features converted to float64 at a time


@dataclass(frozen=True)
class GaussianSums:
    """Mean and scatter matrix of a set of features, in float64; `+` gives those of the union of two sets.

    The sum is the update of Chan et al. 1983, which stays accurate for features far from zero.
    """

    count: int
    mean: np.ndarray  # (d,)
    scatter: np.ndarray  # (d, d): sum of (x - mean)(x - mean)^T

    @classmethod
    def of(cls, features: np.ndarray) -> GaussianSums:
        """Of features (n, d), n >= 1, of any float type. Raises InputError for other shapes and for NaN or infinity."""
        features = np.asarray(features)
        if features.ndim != 2 or len(features) < 1:
            raise InputError(f"expected features (n, d), found {features.shape}")
        chunks = (cls._of_chunk(features[i : i + CHUNK]) for i in range(0, len(features), CHUNK))
        return functools.reduce(operator.add, chunks)

    @classmethod
    def _of_chunk(cls, features: np.ndarray) -> GaussianSums:
        features = features.astype(np.float64)
        if not np.isfinite(features).all():
            bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
            raise InputError(f"{len(bad)} of {len(features)} features are not finite, the first at row {bad[0]}")
        mean = features.mean(axis=0)
        centered = features - mean
        return cls(len(features), mean, centered.T @ centered)

    def __add__(self, other: GaussianSums) -> GaussianSums:
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.count * other.count / count)
        return GaussianSums(count, mean, scatter)

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """scatter / (count - ddof), (d, d). Raises InputError for too few features."""
        if self.count <= ddof:
            raise InputError(f"a covariance needs at least {ddof + 1} features, found {self.count}")
        return self.scatter / (self.count - ddof)


def gaussian(features: np.ndarray, ddof: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) of features (n, d), n >= 2."""
    sums = GaussianSums.of(features)
    return sums.mean, sums.covariance(ddof)


def frechet_distance(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of Gaussians: means (d,), covariances (d, d) (Heusel et al. 2017).

    The trace of the root is computed from the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric, so it is real
    and stable also for singular covariances (fewer samples than features). Equal sets may give about -1e-3.
    Raises InputError for arrays of other shapes or with values that are not finite.
    """
    mean_1, cov_1, mean_2, cov_2 = (np.asarray(array, dtype=np.float64) for array in (mean_1, cov_1, mean_2, cov_2))
    d = mean_1.shape[0]
    if mean_1.shape != (d,) or mean_2.shape != (d,) or cov_1.shape != (d, d) or cov_2.shape != (d, d):
        shapes = [array.shape for array in (mean_1, cov_1, mean_2, cov_2)]
        raise InputError(f"expected shapes (d,), (d, d), (d,), (d, d), found {shapes}")
    if not all(np.isfinite(array).all() for array in (mean_1, cov_1, mean_2, cov_2)):
        raise InputError("means or covariances hold values that are not finite")
    root_1 = _symmetric_root(cov_1)
    eigenvalues = np.linalg.eigvalsh(root_1 @ cov_2 @ root_1)
    trace_of_root = np.sqrt(eigenvalues.clip(min=0)).sum()
    return float(np.square(mean_1 - mean_2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * trace_of_root)


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def kernel_distance(x: np.ndarray, y: np.ndarray, paired: bool = False) -> float:
    """Unbiased MMD^2 of features (n, d), (m, d) under the kernel (a.b / d + 1)^3 (Binkowski et al. 2018, section 4).

    `paired`: x[i] was computed from y[i], as a reconstruction is, and the pair is left out; otherwise the two sets are
    assumed to be independent.
    """
    kernels = cubic_kernels(x, y)
    return mmd_squared(kernels, np.ones(len(x)), np.ones(len(y)), paired)


def cubic_kernels(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kernel (a.b / d + 1)^3 within x (n, n), within y (m, m) and across (n, m)."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(f"expected features (n, d) and (m, d) with n, m of at least 2, found {x.shape}, {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("features hold values that are not finite")
    return tuple((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))


def mmd_squared(
    kernels: tuple[np.ndarray, np.ndarray, np.ndarray],
    weights_x: np.ndarray,
    weights_y: np.ndarray,
    paired: bool = False,
) -> float:
    """Unbiased MMD^2 in which sample i of x counts weights_x[i] times; pairs of a sample with itself are left out.

    With `paired`, so are the pairs of x[i] and y[i].
    """
    within_x, within_y, across = kernels

    def without_self(kernel: np.ndarray, weights: np.ndarray) -> float:
        pairs = weights.sum() ** 2 - np.square(weights).sum()
        return (weights @ kernel @ weights - np.square(weights) @ np.diag(kernel)) / pairs

    total, pairs = weights_x @ across @ weights_y, weights_x.sum() * weights_y.sum()
    if paired:
        total, pairs = total - (weights_x * weights_y) @ np.diag(across), pairs - weights_x @ weights_y
    mean_across = total / pairs
    return float(without_self(within_x, weights_x) + without_self(within_y, weights_y) - 2 * mean_across)


def inception_score(probabilities: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of class probabilities (n, classes): (mean, std) over `splits` consecutive parts.

    Salimans et al. 2016, section 4. Raises InputError where rows are not probabilities or n < splits.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or len(probabilities) < splits or splits < 1:
        raise InputError(f"expected probabilities (n, classes) with n >= splits={splits}, found {probabilities.shape}")
    # `not (... >= 0)` rather than `< 0`, so that NaN is an error too
    if not (probabilities >= 0).all() or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise InputError("every row must hold probabilities: not negative, sum 1")
    scores = []
    for part in np.array_split(probabilities, splits):
        marginal = part.mean(axis=0, keepdims=True)
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
