"""Extrapolation over the number of videos, and bootstrap intervals."""

import numpy as np

from ldm.evaluation.uncertainty import at_infinity, bootstrap_intervals, frechet_by_count, frechet_of_features
from ldm.metrics import kernel_distance

rng = np.random.default_rng(0)


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
