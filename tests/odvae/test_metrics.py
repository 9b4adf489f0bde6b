"""Metrics by what is known of them in closed form, and features that are what their name says."""

import numpy as np
import pytest
import torch

from ldm.evaluation.uncertainty import at_infinity, bootstrap_intervals, frechet_by_count, frechet_of_features
from ldm.metrics import GaussianSums, frechet_distance, gaussian, inception_score, kernel_distance
from odvae.metrics import PSNR_CEILING, psnr, ssim
from odvae.running.errors import InputError

rng = np.random.default_rng(0)


def test_psnr_of_a_known_error_uses_the_range_of_minus_one_to_one():
    video = torch.zeros(2, 3, 4, 16, 16)
    assert psnr(video + 0.2, video).tolist() == pytest.approx([20.0, 20.0])  # 10 log10(4 / 0.04)
    assert psnr(video, video).tolist() == [PSNR_CEILING] * 2


def test_psnr_is_the_mean_over_frames_not_of_the_mean_error():
    video = torch.zeros(1, 3, 2, 16, 16)
    noisy = video.clone()
    noisy[:, :, 0] += 0.2
    noisy[:, :, 1] += 0.02
    assert psnr(noisy, video).item() == pytest.approx((20 + 40) / 2)


def test_ssim_is_one_for_the_same_and_falls_with_noise_and_with_a_shift_of_brightness():
    video = torch.rand(1, 3, 2, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(1))
    assert ssim(video, video).item() == pytest.approx(1)
    assert 0.2 < ssim(video + 0.5 * noise, video).item() < ssim(video + 0.2 * noise, video).item() < 0.99
    assert ssim(video * 0.5, video * 0.5 - 0.4).item() < 0.95


def test_videos_of_different_or_too_small_shapes_are_errors():
    with pytest.raises(InputError, match="two videos"):
        psnr(torch.zeros(1, 3, 2, 16, 16), torch.zeros(1, 3, 3, 16, 16))
    with pytest.raises(InputError, match="11x11"):
        ssim(torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 3, 2, 8, 8))


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    a, b = np.array([1.0, 4.0, 0.0]), np.array([2.0, 1.0, 9.0])
    shift = np.array([1.0, 0.0, -2.0])
    expected = np.square(shift).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(np.zeros(3), np.diag(a), shift, np.diag(b)) == pytest.approx(expected)


def test_frechet_distance_is_symmetric_turns_with_the_axes_and_stays_real_where_covariances_are_singular():
    x, y = rng.normal(size=(30, 6)), rng.normal(size=(40, 6)) * np.linspace(0.5, 2, 6) + 0.3
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    distance = frechet_distance(*gaussian(x), *gaussian(y))
    assert distance == pytest.approx(frechet_distance(*gaussian(y), *gaussian(x)))
    assert distance == pytest.approx(frechet_distance(*gaussian(x @ turn), *gaussian(y @ turn)))
    few = rng.normal(size=(5, 50))
    assert frechet_distance(*gaussian(few), *gaussian(few)) == pytest.approx(0, abs=1e-4)


def test_the_kernel_distance_of_pairs_does_not_compare_a_sample_with_what_was_made_from_it():
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
def test_sums_of_parts_join_to_the_whole_however_far_from_zero_features_lie(cuts):
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


def test_extrapolation_over_the_number_of_videos_finds_the_distance_that_few_videos_overstate():
    x, y = rng.normal(size=(600, 20)), rng.normal(size=(600, 20)) + 0.5  # true distance: 20 * 0.25
    curve = frechet_by_count(x, y, ddof=1, seed=0)
    assert [n for n, _ in curve] == sorted((n for n, _ in curve), reverse=True)
    assert curve[-1][1] > curve[0][1] > 5
    assert abs(at_infinity(curve) - 5) < abs(curve[0][1] - 5)


def test_intervals_hold_the_value_and_narrow_with_more_videos():
    widths = []
    for n in (40, 400):
        x, y = rng.normal(size=(n, 5)), rng.normal(size=(n, 5)) + 1
        intervals = bootstrap_intervals(x, y, ddof=1, repeats=60, seed=0)
        for name, value in (("frechet", frechet_of_features(x, y)), ("kernel", kernel_distance(x, y))):
            low, high = intervals[name]
            assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert bootstrap_intervals(x, y, ddof=1, repeats=0, seed=0) == {"frechet": None, "kernel": None}
