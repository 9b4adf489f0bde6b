"""Work that goes on in a thread beside a training, such as the writing of a checkpoint."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future


class BackgroundWork:
    """At most one function that runs in a thread; its error is raised by the next `check` or `finish`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread, after `finish`. The interpreter does not end before it."""
        assert self._running is None, "one at a time"
        running: Future[None] = Future()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                running.set_exception(error)
            else:
                running.set_result(None)

        self._running = running
        threading.Thread(target=run, name=self.name).start()

    def check(self) -> None:
        """Raise the error of work that has failed; returns at once if it goes on."""
        if self._running is not None and self._running.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the work, and raise its error if it has failed. A signal's handler may interrupt the waiting."""
        if self._running is not None:
            self._running.exception()  # waits; an interrupt here leaves it running
            ended, self._running = self._running, None
            ended.result()

    def close(self) -> None:
        """The same where something else ends it, such as an error or a signal: an error of the work is only printed."""
        try:
            self.finish()
        except Exception as error:
            print(f"error of the {self.name}: {error}", file=sys.stderr, flush=True)
