"""Scores in the model card."""

import numpy as np
import pytest

from ldm.evaluation.features import load_network
from ldm.evaluation.scores import distance_part
from ldm.evaluation.settings import EvalLDMSettings
from ldm.report.card_scores import report_scores
from odvae.running.json_objects import JsonObject


def scores_of(report):
    return report_scores(JsonObject(report, "report.json"))


rng = np.random.default_rng(0)


def test_a_model_card_lists_the_distance_of_every_feature_network_beside_that_of_real_videos():
    network = load_network("random", EvalLDMSettings())
    reference = rng.normal(size=(8, 64))
    sets = {"generated": reference + 1, "reconstructed": reference + 0.1, "real": rng.normal(size=(8, 64))}
    part = distance_part(network, reference, sets, {"ddof": 1}, bootstrap=0, seed=0)
    ((label, value),) = scores_of({"distances": {"random": part, "command": "evaluate", "commit": "abc"}})
    assert label == "Frechet distance on random conv3d features (not FVD) of 8 generated to 8 real videos"
    distance, _, baseline = value.partition(" (other real videos: ")
    assert float(distance) == pytest.approx(64, rel=1e-3)
    assert float(baseline.rstrip(")")) == pytest.approx(part["real"]["frechet"], rel=1e-3)


def test_a_model_card_lists_what_was_measured_and_nothing_else():
    report = {"reconstruction": {"psnr": 30.0, "n": 64}, "prompt_accuracy": None, "commit": "abc"}
    assert scores_of(report) == [("reconstruction PSNR, dB", "30")]
    assert scores_of({}) == []
