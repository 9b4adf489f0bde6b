"""Which samples a step sees, on which rank: functions of the step alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from odvae.running.seeds import numpy_generator


class StepSampler:
    """Sample numbers for one rank, batch by batch, from optimiser step `start` on, without end.

    Step s sees the numbers s*B .. (s+1)*B - 1 with B = ranks * accumulate * batch, however B is made up.
    """

    def __init__(self, batch_size: int, accumulate: int, rank: int, ranks: int, start: int) -> None:
        self.batch_size, self.accumulate, self.rank, self.ranks, self.start = batch_size, accumulate, rank, ranks, start

    def __iter__(self) -> Iterator[list[int]]:
        micro_step = self.start * self.accumulate
        while True:
            first = (micro_step * self.ranks + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            micro_step += 1


@dataclass(frozen=True)
class Draw:
    """One sample of a step: its number among all samples, its bucket, and its place in the bucket's endless order."""

    number: int
    bucket: int
    place: int


class BucketSampler:
    """Draws for one rank, batch by batch, from optimiser step `start` on, without end. A step has one bucket.

    `counts` are the buckets' sizes. An epoch gives each bucket as many steps as it fills (one at least), in an order of
    its own; so each bucket's entries come once before any comes twice. With one bucket the numbers are StepSampler's.
    """

    def __init__(
        self, counts: Sequence[int], seed: int, batch_size: int, accumulate: int, rank: int, ranks: int, start: int
    ) -> None:
        self.seed, self.batch_size, self.accumulate, self.rank, self.ranks = seed, batch_size, accumulate, rank, ranks
        self.start = start
        self.global_batch = batch_size * accumulate * ranks
        self.steps = [max(1, round(count / self.global_batch)) for count in counts]  # of each bucket, in an epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.start
        while True:
            bucket, turn = self.bucket_at(step)
            for micro_step in range(self.accumulate):
                first = (micro_step * self.ranks + self.rank) * self.batch_size
                within = range(first, first + self.batch_size)
                yield [Draw(step * self.global_batch + i, bucket, turn * self.global_batch + i) for i in within]
            step += 1

    def bucket_at(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many steps had that bucket before it."""
        epoch, i = divmod(step, sum(self.steps))
        order = _bucket_order(self.seed, epoch, tuple(self.steps))
        bucket = int(order[i])
        return bucket, epoch * self.steps[bucket] + int((order[:i] == bucket).sum())


@functools.lru_cache(maxsize=2)
def _bucket_order(seed: int, epoch: int, steps: tuple[int, ...]) -> np.ndarray:
    """The buckets of an epoch's steps."""
    return numpy_generator(seed, "buckets", epoch).permutation(np.repeat(np.arange(len(steps)), steps))
