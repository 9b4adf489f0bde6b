"""The order of an epoch: every sample once, in a random order of its own, without storing it."""

import numpy as np
import pytest

from odvae.clips.permutation import LARGEST_STORED, permuted, shuffled_index


@pytest.mark.parametrize("count", [*range(1, 40), 1000, 1023, 1024, 1025, 4999])
def test_every_item_comes_once(count):
    assert sorted(permuted(position, count, key=7) for position in range(count)) == list(range(count))


def test_items_beyond_what_is_stored_come_once_an_epoch_and_in_another_order_each():
    count = LARGEST_STORED + 1
    epochs = [[shuffled_index(epoch * count + i, count, seed=0) for i in range(count)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count))
    assert np.mean(np.equal(*epochs)) < 0.001


@pytest.mark.parametrize("count", [5, 12])
def test_every_item_is_equally_likely_at_every_position(count):
    orders = np.array([[permuted(i, count, key * 2**40 + 1) for i in range(count)] for key in range(3000)])
    seen = np.stack([(orders == item).sum(axis=0) for item in range(count)])  # (item, position)
    expected = 3000 / count
    assert ((seen - expected) ** 2 / expected).sum() < count**2 + 4 * count * np.sqrt(2)  # chi-square, four sigma


def test_positions_of_neighbors_are_not_related():
    count = 10**6
    order = np.array([permuted(i, count, key=3) for i in range(20000)]) / count
    for lag in (1, 2, 16, 1000):
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.03  # four sigma
    counts, _ = np.histogram(order, bins=50, range=(0, 1))
    assert ((counts - 400) ** 2 / 400).sum() < 50 + 4 * np.sqrt(100)


def test_a_set_of_any_size_costs_nothing():
    numbers = [shuffled_index(number, 10**12, seed=0) for number in range(100)]
    assert len(set(numbers)) == 100
    assert max(numbers) > 9 * 10**11
