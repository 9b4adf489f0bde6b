"""The order of samples by blocks: each once an epoch, from few shards at a time, from one part on each node."""

import numpy as np
import pytest

from odvae.clips.dataset import ClipDataset
from odvae.clips.permutation import shuffled_index
from odvae.clips.sample_order import SampleOrder
from odvae.clips.samplers import BatchPlan, StepSampler
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError
from odvae.training.optimization import sample_order
from odvae.training.settings import OptimizationSettings


def epoch_of(order, epoch, count, seed=0):
    return [order.index(epoch * count + i, count, seed) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 100, 1003])
@pytest.mark.parametrize(
    ("block", "buffer", "parts", "batch"),
    [(1, 1, 1, 1), (8, 32, 1, 4), (8, 1, 1, 4), (5, 23, 2, 6), (16, 64, 4, 8), (8, 16, 4, 512), (10**6, 10**7, 3, 3)],
)
def test_every_sample_comes_once_an_epoch(count, block, buffer, parts, batch):
    order = SampleOrder("blocks", block, buffer, parts, batch)
    epochs = [epoch_of(order, epoch, count) for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count == 1003:
        assert len({tuple(epoch) for epoch in epochs}) == 4
        assert epoch_of(order, 1, count) == epochs[1] != epoch_of(order, 1, count, seed=1)


def test_the_exact_order_is_that_of_earlier_versions():
    assert epoch_of(SampleOrder(), 1, 50, seed=3) == [shuffled_index(50 + i, 50, 3) for i in range(50)]


def test_a_buffer_reads_from_its_blocks_only_and_mixes_them():
    order, count = SampleOrder("blocks", block=50, buffer=200), 10_000
    epoch = np.array(epoch_of(order, 0, count)).reshape(-1, 200)
    for samples in epoch:
        runs = np.split(np.sort(samples), np.flatnonzero(np.diff(np.sort(samples)) > 1) + 1)
        assert len(runs) <= 5  # four blocks, one of which may be cut by the end of the set
        neighbors = np.abs(np.diff(samples)) < 50
        assert neighbors.mean() < 0.6  # 1/4 by chance, and some of the next block
    assert (np.diff(epoch.reshape(-1)) == 1).mean() < 0.05


def test_every_rank_reads_from_one_part_of_its_own():
    """Four ranks on four nodes: the blocks of a rank are not those of another."""
    order, count, plan = SampleOrder("blocks", 10, 40, parts=4, global_batch=8), 1001, BatchPlan(2, ranks=4)
    for epoch in range(3):
        read = [set() for _ in range(4)]
        steps = range(-(-epoch * count // 8), (epoch + 1) * count // 8)  # whole global batches of the epoch
        for rank in range(4):
            for step in steps:
                own = [step * 8 + i for i in BatchPlan(2, 1, rank, 4).within_step(0)]
                read[rank] |= {order.index(number, count, 5) for number in own}
        assert sum(map(len, read)) == len(set.union(*read)) == len(steps) * 8
        for samples in read:  # a piece of the circle
            gaps = np.diff(np.sort(list(samples)))
            assert (gaps > 1).sum() <= 1
    assert plan.global_batch == 8


@pytest.mark.parametrize("plan", [BatchPlan(8), BatchPlan(2, 2, ranks=2), BatchPlan(1, 4, ranks=2), BatchPlan(4, 2)])
def test_a_step_has_the_same_samples_however_it_is_divided(plan):
    order = SampleOrder("blocks", 10, 40, parts=2, global_batch=8)
    steps = []
    for rank in range(plan.ranks):
        batches = iter(StepSampler(BatchPlan(plan.batch_size, plan.gradient_accumulation_steps, rank, plan.ranks)))
        steps += [[next(batches) for _ in range(plan.gradient_accumulation_steps)] for _ in range(1)]
    numbers = sorted(number for step in steps for batch in step for number in batch)
    assert [order.index(number, 100, 0) for number in numbers] == [order.index(number, 100, 0) for number in range(8)]


def test_clips_are_drawn_in_the_order():
    order = SampleOrder("blocks", 10, 40)
    clips = ClipDataset(range(100), DataSettings(), 5, order=order)
    assert [clips.source(number, 0) for number in range(150)] == [order.index(n, 100, 5) for n in range(150)]


def test_the_positions_of_a_sample_in_two_epochs_are_not_related():
    order, count = SampleOrder("blocks", block=16, buffer=64), 4096
    positions = np.empty((30, count))
    for epoch in range(30):
        positions[epoch, epoch_of(order, epoch, count)] = np.arange(count) / count
    assert abs(np.corrcoef(positions[:-1].reshape(-1), positions[1:].reshape(-1))[0, 1]) < 0.02
    assert np.ptp(positions.mean(axis=0)) < 0.6  # of 30 uniform values: eleven standard deviations, for 4096 means


def test_settings_give_the_order_and_parts_must_divide_the_global_batch():
    settings = OptimizationSettings(shuffle="blocks", shuffle_block=3, shuffle_buffer=9, shuffle_parts=2)
    assert sample_order(settings, BatchPlan(4, ranks=2)) == SampleOrder("blocks", 3, 9, 2, 8)
    assert sample_order(OptimizationSettings(), BatchPlan(4)).shuffle == "exact"
    with pytest.raises(InputError, match="shuffle_parts=2 does not divide the global batch of 3"):
        sample_order(settings, BatchPlan(3))
