"""Clips decoded ahead by guarded worker processes, into memory that they share with this process."""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from odvae.clips.settings import LoadingSettings
from odvae.running.failures import Failure
from odvae.running.worker_pool import WorkerPool

Task = TypeVar("Task")

# Batches that are decoded while one is used.
AHEAD = 4


@dataclass(frozen=True)
class ClipTicket:
    """A clip that is being decoded: the task that decodes it, where in the shared memory, and its shape."""

    task: int
    slot: int
    shape: tuple[int, ...]


class ClipPool(Generic[Task]):
    """Guarded workers that decode clips into memory they share with this process, as `load(task)` says.

    `shape` is the largest clip's, (t, h, w, 3); `slots` how many clips may be submitted and not yet asked for;
    `name_of` says in errors what a task is.
    """

    def __init__(
        self,
        load: Callable[[Task], Tensor],
        shape: tuple[int, ...],
        slots: int,
        loading: LoadingSettings,
        name_of: Callable[[Task], str],
    ) -> None:
        self.load = load
        self.slots = _shared_bytes(slots, math.prod(shape))
        self.free = deque(range(slots))
        limits = (loading.workers, loading.decode_seconds, loading.decode_gib)
        self.pool = WorkerPool(self._decode, *limits, name_of=lambda task_and_slot: name_of(task_and_slot[0]))

    def __enter__(self) -> ClipPool[Task]:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def submit(self, task: Task, shape: tuple[int, ...]) -> ClipTicket:
        """Begin to decode a clip of this shape."""
        slot = self.free.popleft()
        return ClipTicket(self.pool.submit((task, slot)), slot, shape)

    def clip(self, ticket: ClipTicket) -> Tensor | Failure:
        """The decoded clip, which lasts until the next `submit`; each ticket gives it once."""
        result = self.pool.result(ticket.task)
        self.free.append(ticket.slot)
        if isinstance(result, Failure):
            return result
        return torch.from_numpy(self.slots[ticket.slot, : math.prod(ticket.shape)]).view(ticket.shape)

    def in_order(self, tasks: Iterable[tuple[Task, tuple[int, ...]]]) -> Iterator[Tensor | Failure]:
        """The clips of (task, shape) pairs, decoded ahead as far as there are slots; each lasts until the next."""
        tickets: deque[ClipTicket] = deque()
        for task, shape in tasks:
            if not self.free:
                yield self.clip(tickets.popleft())
            tickets.append(self.submit(task, shape))
        while tickets:
            yield self.clip(tickets.popleft())

    def _decode(self, task_and_slot: tuple[Task, int]) -> None:
        task, slot = task_and_slot
        clip = self.load(task)
        self.slots[slot, : clip.numel()] = clip.flatten().numpy()


def _shared_bytes(slots: int, size: int) -> np.ndarray:
    """uint8 (slots, size) that forked processes share. It needs no room in /dev/shm, which containers keep small."""
    return np.frombuffer(mmap.mmap(-1, slots * size), dtype=np.uint8).reshape(slots, size)
