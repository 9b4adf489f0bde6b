"""Reader process of streamed shards: opens shards, selects and shuffles samples, and reports the others.

Each shard is tried once per pass, in random order; two at a time, so that one that hangs does not block the others.
Shards that failed are tried again in later passes, less and less often. The process ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from typing import Any

from odvae.running.stop_signals import leave_stop_signals_to_parent, stop_signals_blocked
from odvae.shards.remote_shards import ShardError, read_remote_shard

# Size of the shuffle buffer, and its minimum fill before samples are yielded. Each sample is a whole video in memory.
_SHUFFLED, _FIRST = 100, 10

# Samples that are ready for training.
_AHEAD = 8


@dataclass(frozen=True)
class Streamed:
    """A wanted sample: its members, and the shard's URL."""

    key: str
    url: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class Dropped:
    """A sample that training does not use, and the reason."""

    key: str
    url: str
    reason: str


@dataclass(frozen=True)
class ShardFailed:
    """A shard that could not be read, or not completely."""

    url: str
    reason: str


@dataclass(frozen=True)
class PassEnded:
    """Every shard of a pass was tried; its counts. A shard that takes long is left out of passes in the meantime."""

    number: int
    wanted: int = 0
    dropped: int = 0


Message = Streamed | Dropped | ShardFailed | PassEnded


class StreamReader:
    """Starts a reader process and receives its messages, without end.

    `why_not(sample)`, with a sample of `read_remote_shard`, returns why it is not used; empty if it is used.
    """

    def __init__(
        self, urls: Sequence[str], seed: int, timeout: float, why_not: Callable[[dict[str, Any]], str]
    ) -> None:
        fork = get_context("fork")
        self.messages: Queue[Message] = fork.Queue(_AHEAD)
        self._received = fork.Value("Q", 0, lock=False)  # a lock would outlive a process that is killed holding it
        arguments = (list(urls), seed, timeout, why_not, self.messages, self._received, os.getpid())
        self.process = fork.Process(target=_read, args=arguments, daemon=True)
        with stop_signals_blocked():
            self.process.start()

    def next(self, seconds: float) -> Message | None:
        """The next message; None if none arrives within `seconds`."""
        try:
            return self.messages.get(timeout=seconds)
        except queue.Empty:
            return None

    @property
    def received(self) -> int:
        """Number of bytes received from shards so far."""
        return self._received.value

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def close(self) -> None:
        """End the process and the programs from which it reads."""
        self.process.terminate()
        self.process.join(timeout=5)
        self.process.kill()
        self.messages.close()
        self.messages.cancel_join_thread()


def _read(
    urls: list[str],
    seed: int,
    timeout: float,
    why_not: Callable[[dict[str, Any]], str],
    messages: Queue[Message],
    received: ctypes.c_ulonglong,
    parent: int,
) -> None:
    """Main function of the reader process."""
    leave_stop_signals_to_parent(end=_end)
    found: queue.Queue[Message] = queue.Queue(_AHEAD)
    passes = _Passes(urls, random.Random(seed), found)
    one_at_a_time = threading.Lock()

    def count(size: int) -> None:
        with one_at_a_time:
            received.value += size

    for _ in range(min(2, len(urls))):
        threading.Thread(target=_read_shards, args=(passes, timeout, why_not, found, count), daemon=True).start()
    messages.cancel_join_thread()
    for message in _shuffled(found, random.Random(seed + 1), parent):
        while True:
            with contextlib.suppress(queue.Full):
                messages.put(message, timeout=1)
                break
            if os.getppid() != parent:
                _end()


def _end() -> None:
    """End this process and the programs it started: each is a session leader, so that its children end too."""
    with contextlib.suppress(OSError):
        for child in _children(os.getpid()):
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(child, signal.SIGKILL)
    os._exit(0)


def _children(process: int) -> list[int]:
    """The child processes of a process."""
    tasks = f"/proc/{process}/task"
    found = []
    for task in os.listdir(tasks):
        with contextlib.suppress(OSError), open(f"{tasks}/{task}/children") as file:
            found += [int(child) for child in file.read().split()]
    return found


@dataclass
class _Pass:
    """A pass over the shards: those not read yet, the number of those being read, and counts of samples."""

    waiting: list[int]
    at_work: int = 0
    wanted: int = 0
    dropped: int = 0


class _Passes:
    """Chooses the next shard, by its index in `urls`, which may have duplicates.

    A pass has all shards in a new random order, except those being read and those that failed recently.
    """

    def __init__(self, urls: list[str], rng: random.Random, found: queue.Queue[Message]) -> None:
        self.urls, self.random, self.found = urls, rng, found
        self.lock = threading.Lock()
        self.number = 0
        self.passes: dict[int, _Pass] = {}  # that are not over
        self.at_work: set[int] = set()
        self.failures = [0] * len(urls)  # in a row
        self.not_before = [0] * len(urls)
        self.pause = False

    def next(self) -> tuple[int, int]:
        """The next shard to read, and the pass it is in."""
        while True:
            with self.lock:
                current = self.passes.get(self.number)
                if current is None or not current.waiting:
                    current = self._begin_pass()
                if current.waiting:
                    shard = current.waiting.pop()
                    self.at_work.add(shard)
                    current.at_work += 1
                    return shard, self.number
            time.sleep(0.1)  # all shards are being read

    def _begin_pass(self) -> _Pass:
        if self.pause:
            time.sleep(1)  # do not send many requests to a source that is unavailable for a moment
        free = [shard for shard in range(len(self.urls)) if shard not in self.at_work]
        due = [shard for shard in free if self.not_before[shard] <= self.number + 1] or free
        if due:
            self.number += 1
            self.random.shuffle(due)
            self.passes[self.number] = _Pass(due)
        return self.passes.get(self.number) or _Pass([])

    def finished(self, shard: int, number: int, wanted: int, dropped: int, failed: bool) -> None:
        """Record that a shard was read, to its end or up to an error."""
        with self.lock:
            one = self.passes[number]
            self.at_work.remove(shard)
            one.at_work, one.wanted, one.dropped = one.at_work - 1, one.wanted + wanted, one.dropped + dropped
            self.failures[shard] = self.failures[shard] + 1 if failed else 0
            self.not_before[shard] = number + 2 ** min(self.failures[shard], 6) if failed else 0
            if one.waiting or one.at_work:
                return
            del self.passes[number]
            self.pause = not one.wanted + one.dropped
        self.found.put(PassEnded(number, one.wanted, one.dropped))


def _read_shards(
    passes: _Passes,
    timeout: float,
    why_not: Callable[[dict[str, Any]], str],
    found: queue.Queue[Message],
    count: Callable[[int], None],
) -> None:
    while True:
        (shard, number), wanted, dropped, failure = passes.next(), 0, 0, ""
        url = passes.urls[shard]
        try:
            for sample in read_remote_shard(url, timeout, count):
                key = sample.pop("__key__")
                reason = why_not({"__key__": key, **sample})
                wanted, dropped = wanted + (not reason), dropped + bool(reason)
                if reason:
                    found.put(Dropped(key, url, reason))
                else:
                    found.put(Streamed(key, sample.pop("__url__"), sample))
            if not wanted + dropped:
                failure = "holds no sample"
        except ShardError as error:
            failure = str(error)
        if failure:
            found.put(ShardFailed(url, failure))
        passes.finished(shard, number, wanted, dropped, failed=bool(failure) and not wanted)


def _shuffled(found: queue.Queue[Message], rng: random.Random, parent: int) -> Iterator[Message]:
    """Yield the messages, with samples shuffled in a buffer, which is emptied while nothing new arrives."""
    buffer: list[Streamed] = []
    while True:
        try:
            message = found.get(timeout=0.2)
        except queue.Empty:
            if os.getppid() != parent:
                _end()
            if buffer:
                yield buffer.pop(rng.randrange(len(buffer)))
            continue
        if not isinstance(message, Streamed):
            yield message
            continue
        buffer.append(message)
        grows = len(buffer) < _SHUFFLED and len(buffer) % 2
        if len(buffer) >= _FIRST and not grows:
            yield buffer.pop(rng.randrange(len(buffer)))
