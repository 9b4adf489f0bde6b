"""From features of sets of videos to reported scores: distances with baselines, intervals, warnings and protocol."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ldm.evaluation.features import FeatureNetwork
from ldm.evaluation.uncertainty import at_infinity, bootstrap_intervals, frechet_by_count, frechet_of_features
from ldm.metrics import inception_score, kernel_distance

SPLITS = 10  # of an inception score, where there are enough videos


def distance_part(
    network: FeatureNetwork,
    reference: np.ndarray,
    compared: Mapping[str, np.ndarray],
    protocol: dict,
    bootstrap: int,
    seed: int,
) -> dict:
    """Frechet and kernel distances of each set in `compared` to `reference`, all of them features (n, d) of `network`.

    With inception scores where the features are logits. `protocol` gives the covariance's `ddof`.
    """
    n, ddof = len(reference), protocol["ddof"]
    part: dict = {"name": network.distance, "kernel_name": kernel_name(network), "n": n, "protocol": protocol}
    part["warnings"] = []
    if n <= network.dimension:
        part["warnings"].append(
            f"{n} videos are not more than the {network.dimension} features: covariances are singular and Frechet "
            "distances biased upwards; compare them with the baselines, and not with published values"
        )
    for name, features in compared.items():
        curve = frechet_by_count(features, reference, ddof, seed)
        paired = name == "reconstructed"  # of the reference clips themselves
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
    """The name of the kernel distance on a network's features: KVD for I3D, as FVD."""
    return "KVD" if network.name == "i3d" else network.distance.replace("Frechet", "kernel")


def inception_part(logits: np.ndarray) -> dict:
    """The inception score of logits (n, classes), over `SPLITS` parts if each has at least 10 videos, else over one.

    Videos are shuffled first, as in StyleGAN-V's code: samples of classes in turn are not a random order.
    """
    logits = logits[np.random.RandomState(42).permutation(len(logits))].astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    splits = SPLITS if len(logits) >= 10 * SPLITS else 1
    mean, std = inception_score(exponentials / exponentials.sum(axis=1, keepdims=True), splits)
    return {"inception_score": mean, "inception_score_std": std, "inception_score_splits": splits}
