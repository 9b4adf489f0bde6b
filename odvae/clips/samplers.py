"""Batch samplers for distributed training: the samples of a step and rank, as functions of the step."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from odvae.clips.permutation import LARGEST_STORED
from odvae.running.seeds import numpy_generator


@dataclass(frozen=True)
class BatchPlan:
    """How the samples of an optimizer step are divided among ranks and micro-steps, for the rank `rank`."""

    batch_size: int
    """Samples per micro-step and rank."""
    gradient_accumulation_steps: int = 1
    """Micro-steps per step."""
    rank: int = 0
    ranks: int = 1

    @property
    def global_batch(self) -> int:
        """Samples per step, over all ranks and micro-steps."""
        return self.ranks * self.gradient_accumulation_steps * self.batch_size

    def within_step(self, micro_step: int) -> range:
        """Indices, among a step's `global_batch` samples, of this rank's samples in a micro-step (counted from 0)."""
        first = (micro_step * self.ranks + self.rank) * self.batch_size
        return range(first, first + self.batch_size)


class StepSampler:
    """Infinite batches of sample numbers for one rank, after `start` completed optimizer steps.

    The step after s completed steps has the numbers s*B .. (s+1)*B - 1 with B = `plan.global_batch`, however B is
    divided.
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
    """A sample of a step: its number among all samples, its bucket, and its index in the bucket's infinite sequence."""

    number: int
    bucket: int
    index: int


class BucketSampler:
    """Infinite batches of samples for one rank, after `start` completed optimizer steps. A step has one bucket.

    `counts` are the buckets' sizes. In an epoch, each bucket has as many steps as its entries fill (at least one), and
    the order of the steps is random in each epoch. So a bucket's entries are all used once before any is repeated. With
    one bucket, the sample numbers equal those of StepSampler. An epoch of more than 65,536 steps is divided into
    segments with the same shares of all buckets, each in a random order, of which one at a time is stored.

    `batch_sizes`: samples per micro-step and rank of each bucket; None: those of `plan`.
    """

    def __init__(
        self,
        counts: Sequence[int],
        seed: int,
        plan: BatchPlan,
        start: int = 0,
        batch_sizes: Sequence[int] | None = None,
    ) -> None:
        self.seed, self.start = seed, start
        sizes = [plan.batch_size] * len(counts) if batch_sizes is None else batch_sizes
        self.plans = [replace(plan, batch_size=size) for size in sizes]  # of each bucket
        self.steps = [  # of each bucket per epoch
            max(1, round(count / plan.global_batch)) for count, plan in zip(counts, self.plans, strict=True)
        ]

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        step = self.start
        while True:
            bucket, earlier = self.bucket_at(step)
            plan = self.plans[bucket]
            first = sum(count * plan.global_batch for count, plan in zip(earlier, self.plans, strict=True))
            in_bucket = earlier[bucket] * plan.global_batch
            for micro_step in range(plan.gradient_accumulation_steps):
                yield [SampleIndex(first + i, bucket, in_bucket + i) for i in plan.within_step(micro_step)]
            step += 1

    def bucket_at(self, step: int) -> tuple[int, tuple[int, ...]]:
        """The bucket of a step, and of each bucket the number of earlier steps that had it."""
        epoch, i = divmod(step, sum(self.steps))
        segments = -(-sum(self.steps) // LARGEST_STORED)
        first = _steps_before(self.steps, 0, segments)
        for number in range(segments):
            end = _steps_before(self.steps, number + 1, segments)
            if i < sum(end):
                break
            first = end
        steps = tuple(after - before for before, after in zip(first, end, strict=True))
        order = _bucket_order(self.seed, (epoch, number) if segments > 1 else (epoch,), steps)
        within = i - sum(first)
        here = np.bincount(order[:within], minlength=len(steps)).tolist()
        earlier = (epoch * count + before + new for count, before, new in zip(self.steps, first, here, strict=True))
        return int(order[within]), tuple(earlier)


def _steps_before(steps: Sequence[int], segment: int, segments: int) -> list[int]:
    """Of each bucket's steps in an epoch, those before a segment: of each, as large a share as of the others."""
    return [count * segment // segments for count in steps]


@functools.lru_cache(maxsize=2)
def _bucket_order(seed: int, segment: tuple[int, ...], steps: tuple[int, ...]) -> np.ndarray:
    """The buckets of the steps in an epoch, or in a segment of one."""
    return numpy_generator(seed, "buckets", *segment).permutation(
        np.repeat(np.arange(len(steps), dtype=np.int16), steps)
    )
