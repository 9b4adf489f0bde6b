"""The threads that encode batches beside the main one, which meanwhile gathers the next batch and writes the last."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class ComputeThreads:
    """As many threads as this process has cores where those compute, else one.

    On CPU each computes on one core, a batch alone: sums within a batch are then rounded the same for any number of
    cores and ranks, and small networks gain more by it than by sharing each operation among the cores.
    """

    def __init__(self, device: torch.device) -> None:
        self.cores = torch.get_num_threads()
        self.count = self.cores if device.type == "cpu" else 1
        self.busy: list[float] = []  # seconds of each job

    def __enter__(self) -> ComputeThreads:
        self.begin = time.perf_counter()
        self.executor = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(cancel_futures=True)
        torch.set_num_threads(self.cores)

    def submit(self, work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> Future[T]:
        """Have `work` done by the next free thread; it returns when the device is done too."""

        def timed() -> T:
            begin = time.perf_counter()
            try:
                return work(*arguments, **keywords)
            finally:
                self.busy.append(time.perf_counter() - begin)

        return self.executor.submit(timed)

    @property
    def idle_share(self) -> float:
        """The part of the time since the beginning in which the threads, and so the device, had nothing to do."""
        return max(0.0, 1 - sum(self.busy) / (self.count * (time.perf_counter() - self.begin)))
