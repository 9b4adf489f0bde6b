"""Pool of worker processes with time and memory limits, in which a crash fails one task, not the run.

Video decoders are large C libraries that read untrusted files, and some files make them crash, hang or use too much
memory. Here each task runs in a worker with a memory limit and with a time limit by a kernel timer, which ends the
process even inside C code. A worker that dies is replaced; the result of its task is a `Failure` with the reason.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import resource
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Generic, Literal, TypeVar

import torch
from tqdm import tqdm

from odvae.running.errors import InputError, MemoryLimitError, is_out_of_memory
from odvae.running.failures import Failure
from odvae.running.stop_signals import leave_stop_signals_to_parent, stop_signals_blocked

Task = TypeVar("Task")
Result = TypeVar("Result")
Pool = TypeVar("Pool", bound="OrderedPool")

# Tasks queued at a busy worker, so that it never has to wait for the main process.
_AHEAD = 2


class OrderedPool(Generic[Task, Result]):
    """What pools have in common: tasks are submitted, and their results are fetched in the order of the tasks."""

    workers: int
    """Tasks that are computed at once; 0: none, until their results are requested."""

    def submit(self, task: Task) -> int:
        raise NotImplementedError

    def result(self, ticket: int) -> Result | Failure:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def map(self, tasks: Iterable[Task], ahead: int) -> Iterator[Result | Failure]:
        """Yield the results in the order of the tasks; at most `ahead` tasks are submitted in advance."""
        tickets: deque[int] = deque()
        for task in tasks:
            tickets.append(self.submit(task))
            if len(tickets) > ahead:
                yield self.result(tickets.popleft())
        while tickets:
            yield self.result(tickets.popleft())

    def __enter__(self: Pool) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WorkerPool(OrderedPool[Task, Result]):
    """`workers` processes that compute `function(task)`, in at most `seconds` each and `memory_gib` additional memory.

    Workers are forked, so `function` may refer to any objects. Tasks and results are sent through pipes: keep them
    small, and return large results in memory that is shared before the pool is created. An InputError in `function`, or
    a lack of memory, becomes a Failure, but one whose `cause` is "stop" is raised here; any other exception is a bug
    and is raised here, with the task's name (`name_of`). With workers=0 the tasks run in this process, without limits,
    when their results are requested.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        workers: int,
        seconds: float,
        memory_gib: float = 4.0,
        name_of: Callable[[Task], str] = str,
    ) -> None:
        self.workers = workers
        self._workers: list[_Worker] = []
        self.function, self.seconds, self.memory_gib, self.name_of = function, seconds, memory_gib, name_of
        self._tasks: dict[int, Task] = {}  # by ticket; tasks without a result yet
        self._waiting: deque[int] = deque()  # tickets not sent to a worker yet
        self._results: dict[int, Result | Failure] = {}
        self._tickets = 0
        self._workers = [_Worker(self) for _ in range(workers)]

    def submit(self, task: Task) -> int:
        """Queue a task; returns a ticket for its result."""
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._tasks[ticket] = task
        self._waiting.append(ticket)
        self._hand_out()
        return ticket

    def result(self, ticket: int) -> Result | Failure:
        """Wait for a task's result and return it. Call it once per ticket."""
        if not self._workers:
            self._waiting.remove(ticket)
            return self._run_here(self._tasks.pop(ticket))
        while ticket not in self._results:
            ready = wait([worker.connection for worker in self._workers])
            for worker in self._workers:
                if worker.connection in ready:
                    self._receive(worker)
            self._hand_out()
        return self._results.pop(ticket)

    def close(self) -> None:
        """End the workers; remaining tasks and results are dropped."""
        for worker in self._workers:
            worker.end()
        self._workers = []

    def __del__(self) -> None:
        self.close()

    def _run_here(self, task: Task) -> Result | Failure:
        try:
            return self.function(task)
        except InputError as error:
            if error.cause == "stop":
                raise
            return Failure(str(error), error.cause)
        except MemoryError:
            return Failure("needs more memory than there is", "limit")
        except Exception as error:
            raise RuntimeError(f"at {self.name_of(task)}: {type(error).__name__}: {error}") from error

    def _hand_out(self) -> None:
        while self._waiting and self._workers:
            worker = min(self._workers, key=lambda worker: len(worker.tickets))
            if len(worker.tickets) > _AHEAD:
                return
            ticket = self._waiting.popleft()
            worker.tickets.append(ticket)
            with contextlib.suppress(BrokenPipeError):  # the worker died; `_receive` notices and resends its tasks
                worker.connection.send(self._tasks[ticket])

    def _receive(self, worker: _Worker) -> None:
        try:
            kind, value = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._replace(worker)
            return
        ticket = worker.tickets.popleft()
        task = self._tasks.pop(ticket)
        if kind == "bug":
            raise RuntimeError(f"in a worker process, at {self.name_of(task)}:\n{value}")
        if kind == "stop":
            raise InputError(value)
        self._results[ticket] = value

    def _replace(self, worker: _Worker) -> None:
        """Replace a dead worker. Its oldest task becomes a Failure; the others return to the head of the queue."""
        worker.process.join()
        tickets = worker.tickets
        if tickets:
            ticket = tickets.popleft()
            del self._tasks[ticket]
            self._results[ticket] = self._cause_of_death(worker.process.exitcode or 0)
        self._waiting.extendleft(reversed(tickets))
        worker.end()
        self._workers[self._workers.index(worker)] = _Worker(self)

    def _cause_of_death(self, exit_code: int) -> Failure:
        if exit_code == -signal.SIGALRM:
            return Failure(f"took longer than {self.seconds:g} s", "limit")
        if exit_code == -signal.SIGKILL:
            return Failure("its process was killed, probably for lack of memory", "system")
        if exit_code < 0:
            return Failure(f"crashed its process ({signal.Signals(-exit_code).name})")
        return Failure(f"ended its process with status {exit_code}")


class _Worker(Generic[Task, Result]):
    """A process, the pipe to it, and the tickets of the tasks sent to it that have no result yet, oldest first."""

    def __init__(self, pool: WorkerPool[Task, Result]) -> None:
        fork = multiprocessing.get_context("fork")
        self.tickets: deque[int] = deque()
        self.connection, other_end = fork.Pipe()
        arguments = (pool.function, other_end, self.connection, pool.seconds, pool.memory_gib)
        self.process = fork.Process(target=_work, args=arguments, daemon=True)
        with stop_signals_blocked():
            self.process.start()
        other_end.close()  # otherwise the end of the process would not close the pipe

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _work(
    function: Callable[[Task], Result], connection: Connection, parents_end: Connection, seconds: float, gib: float
) -> None:
    """Main function of a worker: run tasks until the main process closes the pipe or ends."""
    parents_end.close()
    leave_stop_signals_to_parent()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the timer ends the process at once, even inside C code
    faulthandler.disable()
    # By default all processes share the lock of progress bars, which a worker that is ended while it holds it never
    # releases.
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(gib)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, seconds)
            result = _run(function, task, gib)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(result)


def _run(
    function: Callable[[Task], Result], task: Task, gib: float
) -> tuple[Literal["result", "bug", "stop"], Result | Failure | str]:
    too_much = Failure(f"needs more than {gib:g} GiB of memory", "limit")
    try:
        return "result", function(task)
    except (MemoryError, MemoryLimitError):
        return "result", too_much
    except InputError as error:
        return ("stop", str(error)) if error.cause == "stop" else ("result", Failure(str(error), error.cause))
    except Exception as error:
        if is_out_of_memory(error):
            return "result", too_much
        return "bug", traceback.format_exc()


def _limit_memory(gib: float) -> None:
    """Limit this process's memory to `gib` GiB more than it uses now. Linux only."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[5]) * resource.getpagesize()  # data and stack
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
