"""The pools that packing uses: processes of this machine, or the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from odvae.packing.settings import PackingSettings
from odvae.running.worker_pool import OrderedPool, WorkerPool

Task = TypeVar("Task")
Result = TypeVar("Result")


def open_pool(
    function: Callable[[Task], Result], settings: PackingSettings, workers: int, cpus: float = 1.0
) -> OrderedPool[Task, Result]:
    """The pool of the settings' engine: `workers` processes here, or as many tasks as a Ray cluster has room for, each
    on `cpus` CPUs."""
    if settings.engine == "ray":
        from odvae.cluster.ray_pool import RayPool

        return RayPool(function, settings.seconds_per_file, settings.memory_gib, cpus=cpus)
    return WorkerPool(function, workers, settings.seconds_per_file, settings.memory_gib)
