"""Pool of worker processes that decode clips in advance, into memory shared with this process."""

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

# Batches that are decoded in advance.
AHEAD = 4


@dataclass(frozen=True)
class ClipTicket:
    """A clip that is being decoded: the ticket of its task, its slot in the shared memory, and its shape."""

    task: int
    slot: int
    shape: tuple[int, ...]


class ClipPool(Generic[Task]):
    """Worker processes with time and memory limits that decode clips, `load(task)`, into shared memory.

    `shape` (t, h, w, 3) is that of the largest clip; `slots` is the maximum number of clips that are submitted and not
    yet requested; `name_of` gives the name of a task in errors.
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
        """Start decoding a clip of this shape."""
        slot = self.free.popleft()
        return ClipTicket(self.pool.submit((task, slot)), slot, shape)

    def clip(self, ticket: ClipTicket) -> Tensor | Failure:
        """Wait for a decoded clip. Call it once per ticket; the next `submit` may overwrite the tensor."""
        result = self.pool.result(ticket.task)
        self.free.append(ticket.slot)
        if isinstance(result, Failure):
            return result
        return torch.from_numpy(self.slots[ticket.slot, : math.prod(ticket.shape)]).view(ticket.shape)

    def in_order(self, tasks: Iterable[tuple[Task, tuple[int, ...]]]) -> Iterator[Tensor | Failure]:
        """Yield the clips of (task, shape) pairs in order, decoded in advance; the next clip overwrites the tensor."""
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
    """uint8 (slots, size), shared with forked processes. It is not in /dev/shm, which is small in containers."""
    return np.frombuffer(mmap.mmap(-1, slots * size), dtype=np.uint8).reshape(slots, size)
