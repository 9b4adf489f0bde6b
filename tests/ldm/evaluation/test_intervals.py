"""Intervals hold the true value about as often as they say, and agree with values computed elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.evaluation.intervals import difference_of_shares, paired_difference, ratio_of_medians, share_interval


@pytest.mark.parametrize(
    ("share", "n", "low", "high"), [(0.1, 10, 0.018, 0.404), (0.0, 20, 0.0, 0.161), (0.81, 100, 0.722, 0.875)]
)
def test_the_interval_of_a_share_is_wilsons(share, n, low, high):
    assert share_interval(share, n) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(
    ("ours", "theirs", "n", "m", "low", "high"),
    # Newcombe 1998, table II, method 10, examples (a), (c) and (e)
    [(56 / 70, 48 / 80, 70, 80, 0.0524, 0.3339), (6 / 7, 2 / 7, 7, 7, 0.0582, 0.8062), (0, 0, 10, 20, -0.1611, 0.2775)],
)
def test_the_interval_of_a_difference_of_shares_is_newcombes(ours, theirs, n, m, low, high):
    assert difference_of_shares(ours, theirs, n, m) == pytest.approx((low, high), abs=2e-4)


def test_the_interval_of_a_paired_difference_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        clips = rng.normal(30, 3, 40)
        low, high = paired_difference(clips + rng.normal(0.5, 0.4, 40), clips)
        assert high - low < 0.6  # of the differences, not of the clips
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_paired_difference_needs_the_same_clips():
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="at least two"):
        paired_difference([1], [1])


def test_the_interval_of_a_ratio_of_medians():
    rng = np.random.default_rng(1)
    low, high = ratio_of_medians(3 * rng.lognormal(0, 0.1, 30), rng.lognormal(0, 0.1, 30))
    assert 2.6 < low < 3 < high < 3.4
    assert ratio_of_medians([2, 2, 2], [1, 1]) == (2, 2)
