"""Training throughput: units of work and model FLOPs per second, MFU, and the share of time spent waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

B = TypeVar("B")


@dataclass(frozen=True)
class Peaks:
    """What one device can compute, FLOP/s, in the precision of a training."""

    published: float | None
    """Its data sheet's; None: not known."""
    measured: float
    """The rate of large matrix products."""


class StepMeter(Generic[B]):
    """Throughput of the steps between two logged rows.

    `cost` gives the model FLOPs of a micro-step on a batch, and how many units of work it is: three forward passes of
    the network that is trained, since the backward pass costs two. What is recomputed, and what only the loss needs,
    is not counted. It does not synchronize with the device: the loss is read before a row is logged, so all earlier
    work is done by then.
    """

    def __init__(self, unit: str, cost: Callable[[B], tuple[int, int]], ranks: int, peaks: Peaks) -> None:
        self.unit, self.cost, self.ranks, self.peaks = unit, cost, ranks, peaks
        self._restart()

    def _restart(self) -> None:
        self.begin, self.waited, self.units, self.flops = time.perf_counter(), 0.0, 0, 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Between steps: validation, samples and checkpoints are not the time of steps."""
        start = time.perf_counter()
        yield
        self.begin += time.perf_counter() - start

    def count(self, batch: B) -> None:
        """Count one micro-step on this batch; the other ranks are assumed to have done the same."""
        flops, units = self.cost(batch)
        self.flops += flops
        self.units += units

    def row(self) -> dict[str, float]:
        """The rates since the last row; starts the next interval. `mfu` only where the published peak is known."""
        seconds = time.perf_counter() - self.begin
        rate = self.flops / seconds  # of one rank
        rates = {f"{self.unit}_per_second": self.ranks * self.units / seconds, "model_tflops": rate / 1e12}
        if self.peaks.published is not None:
            rates["mfu"] = rate / self.peaks.published
        rates |= {"mfu_of_matmul_rate": rate / self.peaks.measured, "data_wait_share": self.waited / seconds}
        self._restart()
        return rates
