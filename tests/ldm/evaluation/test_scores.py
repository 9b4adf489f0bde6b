"""Distances with their baselines and warnings."""

import numpy as np
import pytest

from ldm.evaluation.features import load_network
from ldm.evaluation.scores import distance_part
from ldm.evaluation.settings import EvalLDMSettings

rng = np.random.default_rng(0)


def test_a_distance_comes_with_both_baselines_and_a_warning_for_too_few_videos():
    network = load_network("random", EvalLDMSettings())
    reference = rng.normal(size=(20, 64))
    sets = {"generated": reference + 1, "reconstructed": reference + 0.1, "real": rng.normal(size=(20, 64))}
    part = distance_part(network, reference, sets, {"ddof": 1}, bootstrap=10, seed=0)
    assert part["generated"]["frechet"] == pytest.approx(64, rel=1e-3)
    assert part["reconstructed"]["frechet"] == pytest.approx(0.64, rel=1e-3)
    assert "20 videos are not more than the 64 features" in part["warnings"][0]
    assert part["n"] == part["real"]["n"] == 20
    many = {name: np.tile(features, (4, 1)) for name, features in sets.items()}
    assert not distance_part(network, np.tile(reference, (4, 1)), many, {"ddof": 1}, 0, 0)["warnings"]
