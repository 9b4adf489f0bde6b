"""A pool like WorkerPool whose workers are on all machines of a Ray cluster (optional: the extra `ray`).

Each task is a Ray task. Within it the function runs in a process of its own with the same time and memory limits as
in a WorkerPool, so a file that crashes or hangs costs that file, and no Ray worker. A task whose machine dies is run
again on another one. Results come in the order of the tasks, whichever machine was first.
"""

from __future__ import annotations

import atexit
import contextlib
import secrets
from collections.abc import Callable
from typing import Any

from odvae.running.commands import install_extra
from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.running.worker_pool import OrderedPool, Result, Task, WorkerPool

MISSING = f"engine=ray needs Ray: {install_extra('ray')}"

# How often a task is run again after its machine or Ray's worker process died.
_RETRIES = 8

# In a process of Ray: the pools of the functions that it has run, by their keys.
_pools: dict[str, WorkerPool] = {}


def connect() -> int:
    """Connect to the Ray cluster that RAY_ADDRESS or `ray start` on this machine has named, or start one here.

    Returns the number of its CPUs. Raises InputError where Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise InputError(MISSING) from None
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError) as error:
            raise InputError(f"engine=ray: the cluster cannot be reached: {error}") from None
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class RayPool(OrderedPool[Task, Result]):
    """Computes `function(task)` on a Ray cluster, in at most `seconds` each and `memory_gib` additional memory.

    `function`, tasks and results are pickled; files that they name must be on storage that all machines reach. `cpus`
    is what a task reserves; less than 1 for tasks that mostly wait. With `seconds` None the function runs in Ray's own
    process, without limits. An InputError in `function`, a limit that is exceeded, or a task whose machines died
    repeatedly becomes a Failure; any other exception is a bug and is raised here, with the task's name.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        seconds: float | None,
        memory_gib: float = 4.0,
        name_of: Callable[[Task], str] = str,
        cpus: float = 1.0,
    ) -> None:
        self.workers = connect()
        import ray

        self.name_of = name_of
        self._run = ray.remote(_run_task).options(num_cpus=cpus, max_retries=_RETRIES)
        self._key, self._limits = secrets.token_hex(8), (seconds, memory_gib)
        self._function = ray.put(function)
        self._tasks: dict[int, tuple[Task, Any]] = {}
        self._tickets = 0

    def submit(self, task: Task) -> int:
        """Start a task; returns a ticket for its result."""
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._tasks[ticket] = task, self._run.remote(self._key, self._function, task, *self._limits)
        return ticket

    def result(self, ticket: int) -> Result | Failure:
        """Wait for a task's result and return it. Call it once per ticket."""
        import ray

        task, reference = self._tasks.pop(ticket)
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise RuntimeError(f"in a task of Ray, at {self.name_of(task)}:\n{error}") from None
        except ray.exceptions.RayError as error:
            return Failure(f"the machines that it ran on died {_RETRIES + 1} times ({_first_line(error)})", "system")

    def close(self) -> None:
        """Drop the remaining tasks and results. The cluster stays."""
        import ray

        for _, reference in self._tasks.values():
            with contextlib.suppress(Exception):  # it may have ended, with its machine or without
                ray.cancel(reference, force=False)
        self._tasks = {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _run_task(
    key: str, function: Callable[[Task], Result], task: Task, seconds: float | None, memory_gib: float
) -> Result | Failure:
    """In a process of Ray: run a task in a limited process, which serves all tasks that come to this one."""
    if key not in _pools:
        if not _pools:
            atexit.register(_end_pools)
        _pools[key] = WorkerPool(function, 0 if seconds is None else 1, seconds or 0.0, memory_gib)
    pool: WorkerPool[Task, Result] = _pools[key]
    return pool.result(pool.submit(task))


def _end_pools() -> None:
    for pool in _pools.values():
        pool.close()
    _pools.clear()
