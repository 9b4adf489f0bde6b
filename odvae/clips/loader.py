"""Batches of training clips, and clips one after the other, decoded ahead by guarded worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from odvae.clips.clip import load_clip
from odvae.clips.dataset import ClipDataset
from odvae.clips.pool import AHEAD, ClipPool, ClipTicket
from odvae.clips.remote_clips import streamed_loader
from odvae.clips.samplers import StepSampler
from odvae.clips.settings import DataSettings
from odvae.running.distributed import uses_cuda
from odvae.running.failures import Failure, Failures
from odvae.shards.samples import Sample


def endless_loader(dataset: ClipDataset, sampler: StepSampler) -> Iterator[dict[str, Tensor]]:
    """Batches in the sampler's order: {"video": uint8 (b, t, h, w, 3), "number": (b,)}.

    A video that cannot be decoded, or does something to the process that decodes it, is named once, and another takes
    its place; which one follows from the sample's number too. Raises InputError past `data.failures_allowed`.
    """
    data = dataset.data
    if data.stream is not None:
        yield from streamed_loader(dataset, sampler)
        return
    failures = Failures(len(dataset.samples), data.failures_allowed, "training videos")

    def first_attempt(number: int, attempt: int = 0) -> tuple[int, int]:
        while dataset.source(number, attempt).name in failures.reasons:
            attempt += 1
        return number, attempt

    shape, ahead = data.shape, AHEAD if data.workers else 1
    slots = ahead * sampler.plan.batch_size

    def name_of(task: tuple[int, int]) -> str:
        return dataset.source(*task).name

    with ClipPool(lambda task: dataset.load(*task), shape, slots, data, name_of) as pool:
        pending: deque[list[tuple[tuple[int, int], ClipTicket]]] = deque()
        for numbers in sampler:
            tasks = [first_attempt(number) for number in numbers]
            pending.append([(task, pool.submit(task, shape)) for task in tasks])
            if len(pending) < ahead:
                continue
            video = torch.empty((len(numbers), *shape), dtype=torch.uint8, pin_memory=uses_cuda())
            batch = pending.popleft()
            for i, ((number, attempt), ticket) in enumerate(batch):
                while isinstance(clip := pool.clip(ticket), Failure):
                    failures.add(dataset.source(number, attempt).name, clip.reason, counts=clip.cause != "unfit")
                    number, attempt = first_attempt(number, attempt)
                    ticket = pool.submit((number, attempt), shape)
                video[i] = clip
            yield {"video": video, "number": torch.tensor([number for (number, _), _ in batch])}


def each_clip(samples: Sequence[Sample], data: DataSettings, of: int) -> Iterator[tuple[int, Tensor]]:
    """The clip from frame 0 of each of these videos: (its place among them, uint8 (t, h, w, 3), which lasts until the
    next).

    A video that cannot be decoded is named and left out. Raises InputError past the share `data.failures_allowed` of
    the set's `of` videos.
    """
    failures = Failures(of, data.failures_allowed, "videos")
    for place, clip in enumerate(clips_from(((sample, 0) for sample in samples), data)):
        if isinstance(clip, Failure):
            failures.add(samples[place].name, clip.reason, counts=clip.cause != "unfit")
        else:
            yield place, clip


def clips_from(chosen: Iterable[tuple[Sample, int]], data: DataSettings) -> Iterator[Tensor | Failure]:
    """The clip of each (video, first frame), uint8 (t, h, w, 3), which lasts until the next; in order."""
    slots = AHEAD * max(1, data.workers)

    def load(task: tuple[Sample, int]) -> Tensor:
        sample, start = task
        return load_clip(sample, data, start)

    with ClipPool(load, data.shape, slots, data, lambda task: task[0].name) as pool:
        yield from pool.in_order((task, data.shape) for task in chosen)
