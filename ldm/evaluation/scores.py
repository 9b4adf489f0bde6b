"""Features of sets of videos -> the scores that are reported, each with its floors, its spread and its protocol."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ldm.evaluation.features import FeatureNetwork
from ldm.evaluation.uncertainty import at_infinity, bootstrap_intervals, frechet_by_count, frechet_of_features
from ldm.metrics import inception_score, kernel_distance

SPLITS = 10  # parts of an inception score, where there are enough videos


def distance_part(
    network: FeatureNetwork,
    reference: np.ndarray,
    compared: Mapping[str, np.ndarray],
    protocol: dict,
    bootstrap: int,
    seed: int,
) -> dict:
    """Frechet and kernel distance of each set in `compared` to `reference`, all features (n, d) of one network."""
    n, ddof = len(reference), protocol["ddof"]
    part: dict = {"name": network.distance, "kernel_name": kernel_name(network), "n": n, "protocol": protocol}
    part["warnings"] = []
    if n <= network.dimension:
        part["warnings"].append(
            f"{n} videos are not more than the {network.dimension} features: covariances are singular and Frechet "
            "distances biased upwards; compare them with the floors, and with nothing published"
        )
    for name, features in compared.items():
        curve = frechet_by_count(features, reference, ddof, seed)
        paired = name == "reconstructed"  # of the reference's own clips
        intervals = bootstrap_intervals(features, reference, ddof, bootstrap, seed, paired)
        part[name] = {
            "frechet": frechet_of_features(features, reference, ddof),
            "frechet_interval": intervals["frechet"],
            "frechet_by_n": curve,
            "frechet_at_infinity": at_infinity(curve),
            "kernel": kernel_distance(features, reference, paired),
            "kernel_interval": intervals["kernel"],
            "n": len(features),
        }
        if network.are_logits:
            part[name] |= inception_part(features)
    if network.are_logits:
        part["reference"] = inception_part(reference)
    return part


def kernel_name(network: FeatureNetwork) -> str:
    """KVD is I3D's, as FVD is."""
    return "KVD" if network.name == "i3d" else network.distance.replace("Frechet", "kernel")


def inception_part(logits: np.ndarray) -> dict:
    """The inception score on a classifier's logits (n, classes), in parts as usual where each has enough videos."""
    logits = logits.astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    splits = SPLITS if len(logits) >= 10 * SPLITS else 1
    mean, std = inception_score(odds / odds.sum(axis=1, keepdims=True), splits)
    return {"inception_score": mean, "inception_score_std": std, "inception_score_splits": splits}
