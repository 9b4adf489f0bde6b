"""What Ctrl-C, SIGTERM and SIGUSR1 (which SLURM can send before time is up) do to a command and to its workers.

Most work ends at once: what was written is whole, and the same command goes on from there. A training loop finishes its
step, saves a checkpoint and ends. Both end with the exit status a signal gives: 130, 143, 138.
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
from accelerate.utils import reduce

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_MOST_STEPS_UNASKED = 10


class StopSignals:
    """The main thread's handling of stop signals, from `install` to `restore`."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.waiting = False  # for a loop to save
        self.before: dict[int, Any] = {}
        self.asked_step, self.asked_time, self.ask_at = 0, time.monotonic(), 0

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._receive) for number in STOPPING}

    def restore(self) -> None:
        """Let the signals do again what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    @contextlib.contextmanager
    def deferred(self, first: int) -> Iterator[None]:
        """Within it a signal is only noted, for `agreed` to tell, of which step `first` is the first to ask.

        A second Ctrl-C interrupts at once.
        """
        self.waiting = True
        self.asked_step, self.asked_time, self.ask_at = first - 1, time.monotonic(), first
        try:
            yield
        finally:
            self.waiting = False

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        again, self.received = self.received is not None, number
        if self.waiting and not (again and number == signal.SIGINT):
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if PartialState().is_main_process:
            print(
                f"\nstopped by {signal.Signals(number).name}: what was written before is intact; run the same command "
                "again to go on",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(128 + number)

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step, the same answer on every rank; `received` is then the signal everywhere.

        Several ranks ask each other about once a second, at least every tenth step: asking waits for the device.
        """
        state = PartialState()
        if state.num_processes == 1:
            return self.received is not None
        if step < self.ask_at:
            return False
        now = time.monotonic()
        mine = [float(self.received == number) for number in STOPPING] + [now - self.asked_time]
        *received, seconds = reduce(torch.tensor(mine, device=state.device), "sum").tolist()
        seconds_a_step = seconds / state.num_processes / max(1, step - self.asked_step)
        self.asked_step, self.asked_time = step, now
        self.ask_at = step + max(1, min(_MOST_STEPS_UNASKED, int(1 / max(seconds_a_step, 1e-3))))
        heard = [number for number, count in zip(STOPPING, received, strict=True) if count]
        if heard:  # else keep what may have come meanwhile, while the ranks waited for each other
            self.received = heard[0]
        return bool(heard)


@contextlib.contextmanager
def workers_begin_shielded() -> Iterator[None]:
    """Start worker processes within it: all their threads, also those that libraries start at a fork, block the stop
    signals from the beginning. Their first act is `leave_stop_signals_to_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_stop_signals_to_parent(_worker: int = 0, end: Callable[[], None] = lambda: os._exit(0)) -> None:
    """In a worker process: outlive stop signals that its whole process group gets, and end when the parent says so.

    Otherwise the main process would miss its workers before it has finished its step and saved. A SIGTERM that the
    parent itself sends ends the worker, by `end`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)

    def answer() -> None:
        while True:
            received = signal.sigwaitinfo({signal.SIGTERM, signal.SIGUSR1})
            if received.si_signo == signal.SIGTERM and received.si_pid == parent:
                end()

    threading.Thread(target=answer, daemon=True).start()
