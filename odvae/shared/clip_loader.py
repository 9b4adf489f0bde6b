"""Batches of training clips, decoded ahead by guarded worker processes.

Which clip sample n is, is a pure function of (seed, n): the video, the first frame, the crop and the flip follow from
the number. So any number of ranks and workers reads the same clips, and a resumed run goes on with the very next one.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from odvae.shared.clips import CENTRE, DataSettings, frame_count, load_clip
from odvae.shared.guarded import Failure, Failures, GuardedPool
from odvae.shared.sampling import StepSampler
from odvae.shared.seeds import derive_seed, numpy_generator, shuffled_index
from odvae.shared.shards import Sample
from odvae.shared.video import VideoError

Task = TypeVar("Task")

# Batches that are decoded while one is used.
_AHEAD = 4


class ClipDataset:
    """Sample number n -> {"video": uint8 (t, h, w, 3), "number": n}. Infinite."""

    def __init__(self, samples: Sequence[Sample], data: DataSettings, seed: int) -> None:
        self.samples, self.data, self.seed = list(samples), data, seed

    def __getitem__(self, number: int) -> dict:
        return {"video": self.load(number, attempt=0), "number": number}

    def source(self, number: int, attempt: int) -> Sample:
        """The video sample n is from; a higher attempt takes another where that one cannot be decoded."""
        if attempt == 0:
            return self.samples[shuffled_index(number, len(self.samples), self.seed)]
        return self.samples[derive_seed(self.seed, "replacement", number, attempt) % len(self.samples)]

    def load(self, number: int, attempt: int) -> Tensor:
        """The clip, uint8 (t, h, w, 3)."""
        sample, data = self.source(number, attempt), self.data
        rng = numpy_generator(self.seed, "clip", number)
        last_start = frame_count(sample, data) - data.span
        if last_start < 0:
            raise VideoError(f"{sample.name}: is shorter than the {data.span} frames a clip spans")
        anywhere = int(rng.integers(0, last_start + 1))
        start = {"random": anywhere, "first": 0, "middle": last_start // 2}[data.start]
        crop = (float(rng.random()), float(rng.random())) if data.crop == "random" else CENTRE
        return load_clip(sample, data, start, crop, flip=derive_seed(self.seed, "flip", number) / 2**63 < data.flip)


def endless_loader(dataset: ClipDataset, sampler: StepSampler, workers: int) -> Iterator[dict[str, Tensor]]:
    """Batches in the sampler's order: {"video": uint8 (b, t, h, w, 3), "number": (b,)}.

    A video that cannot be decoded, or does something to the process that decodes it, is named once, and another takes
    its place; which one follows from the sample's number too. Raises InputError past `data.failures_allowed`.
    """
    data = dataset.data
    failures = Failures(len(dataset.samples), data.failures_allowed, "training videos")

    def first_attempt(number: int, attempt: int = 0) -> tuple[int, int]:
        while dataset.source(number, attempt).name in failures.reasons:
            attempt += 1
        return number, attempt

    shape, ahead = (data.frames, data.height, data.width, 3), _AHEAD if workers else 1
    with ClipPool(lambda task: dataset.load(*task), shape, ahead * sampler.batch_size, workers, data) as pool:
        pending: deque[list[tuple[tuple[int, int], ClipTicket]]] = deque()
        for numbers in sampler:
            tasks = [first_attempt(number) for number in numbers]
            pending.append([(task, pool.submit(task, shape)) for task in tasks])
            if len(pending) < ahead:
                continue
            video = torch.empty((len(numbers), *shape), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            batch = pending.popleft()
            for i, ((number, attempt), ticket) in enumerate(batch):
                while isinstance(clip := pool.clip(ticket), Failure):
                    failures.add(dataset.source(number, attempt).name, clip.reason)
                    number, attempt = first_attempt(number, attempt)
                    ticket = pool.submit((number, attempt), shape)
                video[i] = clip
            yield {"video": video, "number": torch.tensor([number for (number, _), _ in batch])}


@dataclass(frozen=True)
class ClipTicket:
    """A clip that is being decoded: the task that decodes it, where in the shared memory, and its shape."""

    task: int
    slot: int
    shape: tuple[int, ...]


class ClipPool(Generic[Task]):
    """Guarded workers that decode clips into memory they share with this process, as `load(task)` says.

    `shape` is the largest clip's, (t, h, w, 3); `slots` how many clips may be submitted and not yet asked for.
    """

    def __init__(
        self,
        load: Callable[[Task], Tensor],
        shape: tuple[int, ...],
        slots: int,
        workers: int,
        data: DataSettings,
    ) -> None:
        self.load = load
        self.slots = _shared_bytes(slots, math.prod(shape))
        self.free = deque(range(slots))
        self.pool = GuardedPool(self._decode, workers, data.decode_seconds, data.decode_gib)

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
