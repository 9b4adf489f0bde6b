"""Which samples a step sees, on which rank: functions of the step alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from odvae.running.seeds import numpy_generator


@dataclass(frozen=True)
class BatchPlan:
    """How the samples of one optimizer step are divided over ranks and micro-steps; this is the plan of `rank`."""

    batch_size: int
    """Samples a micro-step on each rank."""
    gradient_accumulation_steps: int = 1
    """Micro-steps a step."""
    rank: int = 0
    ranks: int = 1

    @property
    def global_batch(self) -> int:
        """Samples a step, over all ranks and micro-steps."""
        return self.ranks * self.gradient_accumulation_steps * self.batch_size

    def within_step(self, micro_step: int) -> range:
        """Which of a step's `global_batch` samples this rank sees in a micro-step (from 0)."""
        first = (micro_step * self.ranks + self.rank) * self.batch_size
        return range(first, first + self.batch_size)


class StepSampler:
    """Sample numbers for one rank, batch by batch, from optimizer step `start` on, without end.

    Step s sees the numbers s*B .. (s+1)*B - 1 with B = `plan.global_batch`, however B is divided.
    """

    def __init__(self, plan: BatchPlan, start: int = 0) -> None:
        self.plan, self.start = plan, start

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start * self.plan.global_batch
        while True:
            for micro_step in range(self.plan.gradient_accumulation_steps):
                yield [first + i for i in self.plan.within_step(micro_step)]
            first += self.plan.global_batch


@dataclass(frozen=True)
class SampleIndex:
    """One sample of a step: its number among all samples, its bucket, and its index in the bucket's endless order."""

    number: int
    bucket: int
    index: int


class BucketSampler:
    """Samples for one rank, batch by batch, from optimizer step `start` on, without end. A step has one bucket.

    `counts` are the buckets' sizes. An epoch gives each bucket as many steps as it fills (one at least), in an order of
    its own; so each bucket's entries come once before any comes twice. With one bucket the numbers are StepSampler's.
    """

    def __init__(self, counts: Sequence[int], seed: int, plan: BatchPlan, start: int = 0) -> None:
        self.seed, self.plan, self.start = seed, plan, start
        self.steps = [max(1, round(count / plan.global_batch)) for count in counts]  # of each bucket, in an epoch

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        step, size = self.start, self.plan.global_batch
        while True:
            bucket, earlier = self.bucket_at(step)
            for micro_step in range(self.plan.gradient_accumulation_steps):
                within = self.plan.within_step(micro_step)
                yield [SampleIndex(step * size + i, bucket, earlier * size + i) for i in within]
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
