"""Handling of Ctrl-C, SIGTERM and SIGUSR1 (which SLURM can send before a job's time limit) in commands and workers.

Most commands end at once: all written files are complete, and the same command resumes from them. A training loop
finishes its step, saves a checkpoint and ends. The exit status is that of the signal: 130, 143 or 138.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState

from odvae.running.distributed import SumOfRanks

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SLOW_STEP = 1.0  # seconds


class StopSignals:
    """The main thread's handlers of stop signals, from `install` to `restore`."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferring = False  # whether a loop will save before the process ends
        self.before: dict[int, Any] = {}
        self._exchanged: SumOfRanks | None = None  # the signals of the step before
        self._slow, self._asked = False, time.monotonic()

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._receive) for number in STOPPING}

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal is only recorded, and `agreed` reports it. A second Ctrl-C interrupts at once."""
        self.deferring, self._exchanged, self._slow, self._asked = True, None, False, time.monotonic()
        try:
            yield
        finally:
            self.deferring = False

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        again, self.received = self.received is not None, number
        if self.deferring and not (again and number == signal.SIGINT):
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if PartialState().is_main_process:
            print(
                f"\nstopped by {signal.Signals(number).name}: what was written before is intact; run the same command "
                "again to resume",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(128 + number)

    def agreed(self) -> bool:
        """Whether to stop after this step, with the same result on every rank, as is `received` if it is True.

        Several ranks exchange their signals in every step while they compute the next one, on the CPU, so that nothing
        waits for a GPU: they stop one step after that in which the first of them got a signal. Where steps take longer
        than a second they wait for the exchange, which is short then, and stop in the same step.
        """
        state = PartialState()
        if state.num_processes == 1:
            return self.received is not None
        now = time.monotonic()
        mine = [float(self.received == number) for number in STOPPING] + [now - self._asked]
        earlier, self._exchanged, self._asked = self._exchanged, SumOfRanks(torch.tensor(mine)), now
        exchanged = self._exchanged if self._slow else earlier
        if exchanged is None:
            return False
        *received, seconds = exchanged.result().tolist()
        self._slow = seconds / state.num_processes > _SLOW_STEP
        signals = [number for number, count in zip(STOPPING, received, strict=True) if count]
        if signals:  # otherwise keep a signal that this rank may have received meanwhile
            self.received = signals[0]
        return bool(signals)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start worker processes within it: all their threads, also those that libraries start at a fork, block the stop
    signals from the beginning. A worker must call `leave_stop_signals_to_parent` first."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_stop_signals_to_parent(_worker: int = 0, end: Callable[[], None] = lambda: os._exit(0)) -> None:
    """In a worker process: ignore stop signals sent to the process group; call `end` on SIGTERM from the parent.

    Otherwise the main process would lose its workers before it has finished its step and saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)

    def wait_for_parent() -> None:
        while True:
            received = signal.sigwaitinfo({signal.SIGTERM, signal.SIGUSR1})
            if received.si_signo == signal.SIGTERM and received.si_pid == parent:
                end()

    threading.Thread(target=wait_for_parent, daemon=True).start()
