"""Distances of distributions: closed forms and golden values."""

import json

import numpy as np
import pytest
from golden import GOLDEN, golden_values

from ldm.metrics import GaussianSums, frechet_distance, gaussian, inception_score, kernel_distance
from odvae.running.errors import InputError

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def golden():
    return golden_values()


@pytest.fixture(scope="module")
def features():
    return np.load(GOLDEN / "features.npz")


def test_frechet_distance_meets_the_golden_values(golden, features):
    values = golden["frechet_distance"]
    full = frechet_distance(*gaussian(features["X"]), *gaussian(features["Y"]))
    assert full == pytest.approx(values["X_vs_Y"]["eig_ddof1"], rel=1e-6)
    population = frechet_distance(*gaussian(features["X"], ddof=0), *gaussian(features["Y"], ddof=0))
    assert population == pytest.approx(values["X_vs_Y"]["eig_ddof0"], rel=1e-6)
    deficient = frechet_distance(*gaussian(features["P"]), *gaussian(features["Q"]))
    assert deficient == pytest.approx(values["P_vs_Q_rank_deficient"]["eig_ddof1"], rel=1e-4, abs=2e-2)


def test_kernel_distance_meets_the_golden_values(golden, features):
    for x, y in (("X", "Y"), ("P", "Q")):
        expected = golden["kernel_distance"][f"{x}_vs_{y}"]["gamma=1/d (KID)"]["unbiased"]
        assert kernel_distance(features[x], features[y]) == pytest.approx(expected, rel=1e-6)


def test_inception_score_whole_and_in_parts_meets_the_golden_values(golden, features):
    values = golden["inception_score"]
    assert inception_score(features["probabilities"]) == pytest.approx(values["splits1"], rel=1e-9)
    assert inception_score(features["probabilities"], 10) == pytest.approx(values["splits10_in_order"], rel=1e-9)


def test_frechet_distance_of_real_i3d_statistics(shared):
    values = json.loads((shared / "reference/metrics/values.json").read_text())["frechet_i3d_stats"]["values"]
    statistics = np.load(shared / "reference/metrics/i3d_kinetics400_logit_stats.npz")
    for pair, expected in values.items():
        first, second = pair.split(" vs ")
        arrays = [statistics[f"{name}__{part}"] for name in (first, second) for part in ("mean", "cov")]
        assert frechet_distance(*arrays) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    a, b = np.array([1.0, 4.0, 0.0]), np.array([2.0, 1.0, 9.0])
    shift = np.array([1.0, 0.0, -2.0])
    expected = np.square(shift).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(np.zeros(3), np.diag(a), shift, np.diag(b)) == pytest.approx(expected)


def test_frechet_distance_of_covariances_as_steep_as_i3ds_is_the_closed_form():
    """400 axes that fall over eight decades, turned: what sqrtm of the product gets wrong."""
    a, b = np.logspace(2, -6, 400), np.logspace(1, -6, 400)
    axes = np.linalg.qr(np.random.default_rng(1).normal(size=(400, 400)))[0]
    expected = np.square(np.sqrt(a) - np.sqrt(b)).sum()
    found = frechet_distance(np.zeros(400), axes * a @ axes.T, np.zeros(400), axes * b @ axes.T)
    assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_symmetric_rotation_invariant_and_real_for_singular_covariances():
    x, y = rng.normal(size=(30, 6)), rng.normal(size=(40, 6)) * np.linspace(0.5, 2, 6) + 0.3
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    distance = frechet_distance(*gaussian(x), *gaussian(y))
    assert distance == pytest.approx(frechet_distance(*gaussian(y), *gaussian(x)))
    assert distance == pytest.approx(frechet_distance(*gaussian(x @ turn), *gaussian(y @ turn)))
    few = rng.normal(size=(5, 50))
    assert frechet_distance(*gaussian(few), *gaussian(few)) == pytest.approx(0, abs=1e-4)


def test_the_paired_kernel_distance_does_not_compare_a_sample_with_its_reconstruction():
    x = np.random.default_rng(0).normal(size=(40, 5))
    assert kernel_distance(x, x) < -1e-2
    assert kernel_distance(x, x, paired=True) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_unbiased():
    same = [kernel_distance(rng.normal(size=(40, 5)), rng.normal(size=(40, 5))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    assert min(same) < 0  # a biased estimate never is
    assert kernel_distance(rng.normal(size=(40, 5)), rng.normal(size=(40, 5)) + 1) > 1


def test_inception_score_is_one_without_information_and_the_number_of_classes_with_all():
    assert inception_score(np.full((20, 4), 0.25))[0] == pytest.approx(1)
    assert inception_score(np.eye(4)[np.arange(20) % 4])[0] == pytest.approx(4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: frechet_distance(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4)),
        lambda: frechet_distance(np.zeros(2), np.full((2, 2), np.nan), np.zeros(2), np.eye(2)),
        lambda: gaussian(np.zeros((1, 4))),
        lambda: kernel_distance(np.zeros((5, 3)), np.zeros((5, 4))),
        lambda: inception_score(np.full((5, 3), 0.5)),
        lambda: inception_score(np.full((5, 2), 0.5), splits=6),
    ],
)
def test_arrays_that_make_no_sense_are_errors(call):
    with pytest.raises(InputError):
        call()


@pytest.mark.parametrize("cuts", [[1], [7, 8], [10, 20, 30]])
def test_statistics_of_parts_combine_exactly_for_features_far_from_zero(cuts):
    features = rng.normal(size=(40, 6)) + 1e5
    parts = [GaussianSums.of(part) for part in np.split(features, cuts)]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + part
    assert joined.count == 40
    assert joined.mean == pytest.approx(features.mean(axis=0), rel=1e-12)
    assert joined.covariance() == pytest.approx(np.cov(features, rowvar=False), rel=1e-8)


def test_features_that_are_not_finite_are_refused_by_their_row():
    features = np.ones((5, 3))
    features[3, 1] = np.nan
    with pytest.raises(InputError, match="1 of 5 features are not finite, the first at row 3"):
        GaussianSums.of(features)
