"""Generation metrics as pure functions of features: Frechet distance, kernel distance, inception score."""

from __future__ import annotations

import numpy as np

from odvae.shared.errors import InputError


def frechet_distance(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of Gaussians: means (d,), covariances (d, d) (Heusel et al. 2017).

    In float64; the trace of the root comes from the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric, so no
    complex or huge values arise where a covariance is singular (fewer samples than features).
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


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and sample covariance (d, d), ddof 1, of features (n, d), in float64."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"expected features (n, d) of at least 2 samples, found {features.shape}")
    return features.mean(axis=0), np.cov(features, rowvar=False).reshape(features.shape[1], features.shape[1])


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of features (n, d), (m, d) under the kernel (a.b / d + 1)^3 (Binkowski et al. 2018, section 4)."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(f"expected features (n, d) and (m, d) with n, m of at least 2, found {x.shape}, {y.shape}")
    n, m = len(x), len(y)
    within_x, within_y, across = _cubic(x, x), _cubic(y, y), _cubic(x, y)
    return float(
        (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
        + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
        - 2 * across.mean()
    )


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def inception_score(probabilities: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of class probabilities (n, classes): (mean, std) over `splits` parts in order.

    Salimans et al. 2016, section 4. Raises InputError where rows are no probabilities or n < splits.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or len(probabilities) < splits or splits < 1:
        raise InputError(f"expected probabilities (n, classes) with n >= splits={splits}, found {probabilities.shape}")
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise InputError("every row must hold probabilities: not negative, sum 1")
    scores = []
    for part in np.array_split(probabilities, splits):
        marginal = part.mean(axis=0, keepdims=True)
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
