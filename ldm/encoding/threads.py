"""Threads that encode batches while the main thread collects the next batch and writes the last one."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class ComputeThreads:
    """Thread pool: on a CPU one single-threaded worker per core, on other devices one worker.

    On a CPU each batch is computed by one core, so that rounding does not depend on the number of cores and ranks; for
    small networks this is also faster than dividing each operation among the cores.
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
        """Run `work` in the next free thread. `work` must return results that the device has finished computing."""

        def timed() -> T:
            begin = time.perf_counter()
            try:
                return work(*arguments, **keywords)
            finally:
                self.busy.append(time.perf_counter() - begin)

        return self.executor.submit(timed)

    @property
    def idle_share(self) -> float:
        """Share of the time since `__enter__` in which the threads, and so the device, were idle."""
        return max(0.0, 1 - sum(self.busy) / (self.count * (time.perf_counter() - self.begin)))
