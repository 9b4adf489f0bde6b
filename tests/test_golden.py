"""Metrics against golden values of their original implementations (skipped where the reference folder is absent)."""

import json

import numpy as np
import pytest
import torch

from ldm.metrics import frechet_distance, gaussian, inception_score, kernel_distance
from odvae.metrics import psnr, ssim
from odvae.shared.pixels import to_float


@pytest.fixture(scope="module")
def values(shared):
    return json.loads((shared / "reference/metrics/values.json").read_text())


def test_psnr_and_ssim_of_degraded_clips(shared):
    clips = np.load(shared / "reference/metrics/clips.npz")
    golden = json.loads((shared / "reference/metrics/golden.json").read_text())["per_video"]["degraded"]
    real, degraded = (to_float(torch.from_numpy(clips[name])) for name in ("real", "degraded"))
    assert psnr(degraded, real).numpy() == pytest.approx(golden["psnr_frame_mean"], abs=2e-4)
    assert ssim(degraded, real).numpy() == pytest.approx(golden["ssim_rgb_gauss11"], abs=1e-5)


def test_frechet_distance_of_synthetic_features(shared, values):
    features = np.load(shared / "reference/metrics/synthetic_features.npz")
    golden = values["frechet_synthetic"]
    full = frechet_distance(*gaussian(features["X"]), *gaussian(features["Y"]))
    assert full == pytest.approx(golden["X_vs_Y"]["eig_ddof1"], rel=1e-6)
    deficient = frechet_distance(*gaussian(features["P"]), *gaussian(features["Q"]))
    assert deficient == pytest.approx(golden["P_vs_Q_rank_deficient"]["eig_ddof1"], rel=1e-4, abs=2e-2)


def test_frechet_distance_of_real_i3d_statistics(shared, values):
    statistics = np.load(shared / "reference/metrics/i3d_kinetics400_logit_stats.npz")
    for pair, expected in values["frechet_i3d_stats"]["values"].items():
        first, second = pair.split(" vs ")
        arrays = [statistics[f"{name}__{part}"] for name in (first, second) for part in ("mean", "cov")]
        assert frechet_distance(*arrays) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_of_synthetic_features(shared, values):
    features = np.load(shared / "reference/metrics/synthetic_features.npz")
    golden = values["kvd_synthetic"]
    for x, y in (("X", "Y"), ("P", "Q")):
        expected = golden[f"{x}_vs_{y}"]["gamma=1/d (KID)"]["unbiased"]
        assert kernel_distance(features[x], features[y]) == pytest.approx(expected, rel=1e-6)


def test_inception_score_whole_and_in_parts(shared, values):
    probabilities = np.load(shared / "reference/metrics/is_probs.npz")["p"]
    golden = values["inception_score"]
    assert inception_score(probabilities) == pytest.approx(golden["splits1"], rel=1e-9)
    assert inception_score(probabilities, 10) == pytest.approx(golden["splits10_in_order"], rel=1e-9)
