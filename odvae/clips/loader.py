"""Data loaders: batches of training clips, and clips in order, decoded in advance by worker processes with limits."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from odvae.clips.clip import load_clip
from odvae.clips.dataset import ClipDataset
from odvae.clips.pool import AHEAD, ClipPool, ClipTicket
from odvae.clips.remote_clips import streamed_loader
from odvae.clips.samplers import StepSampler
from odvae.clips.settings import DataSettings
from odvae.running.distributed import uses_cuda
from odvae.running.errors import InputError
from odvae.running.failures import Failure, Failures
from odvae.shards.samples import Sample


def endless_loader(dataset: ClipDataset, sampler: StepSampler) -> Generator[dict[str, Tensor], None, None]:
    """Yield batches in the sampler's order: {"video": uint8 (b, t, h, w, 3), "number": (b,)}.

    A video that cannot be decoded, or kills the worker that decodes it, is reported once and replaced by another one,
    which is also a function of the sample number. Raises InputError after more failures than `data.failures_allowed`,
    and once every video has failed.
    """
    data = dataset.data
    if data.stream is not None:
        yield from streamed_loader(dataset, sampler)
        return
    failures = Failures(len(dataset.samples), data.failures_allowed, "training videos")

    def first_attempt(number: int, attempt: int = 0) -> tuple[int, int]:
        if len(failures.reasons) == len(dataset.samples):  # whatever share is allowed: none is left to replace others
            listed = "".join(f"\n  {reason}" for reason in list(failures.reasons.values())[:20])
            raise InputError(f"none of the {len(dataset.samples)} training videos can be used:{listed}")
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
                    name = dataset.source(number, attempt).name
                    dataset.failed[name] = clip.reason
                    failures.add(name, clip.reason, counts=clip.cause != "unfit")
                    number, attempt = first_attempt(number, attempt)
                    ticket = pool.submit((number, attempt), shape)
                video[i] = clip
            yield {"video": video, "number": torch.tensor([number for (number, _), _ in batch])}


def each_clip(
    samples: Sequence[Sample], data: DataSettings, total_videos: int, failed: dict[str, str] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, clip from frame 0, uint8 (t, h, w, 3)) for each video; the next clip overwrites the tensor.

    A video that cannot be decoded is reported, added to `failed` (name -> why), and left out. Raises InputError if
    these are more than the share `data.failures_allowed` of `total_videos`.
    """
    failures = Failures(total_videos, data.failures_allowed, "videos")
    for index, clip in enumerate(clips_from(((sample, 0) for sample in samples), data)):
        if isinstance(clip, Failure):
            failures.add(samples[index].name, clip.reason, counts=clip.cause != "unfit")
            if failed is not None:
                failed[samples[index].name] = clip.reason
        else:
            yield index, clip


def clips_from(chosen: Iterable[tuple[Sample, int]], data: DataSettings) -> Iterator[Tensor | Failure]:
    """Yield the clip of each (video, first frame) in order, uint8 (t, h, w, 3); the next clip overwrites the tensor."""
    slots = AHEAD * max(1, data.workers)

    def load(task: tuple[Sample, int]) -> Tensor:
        sample, start = task
        return load_clip(sample, data, start)

    with ClipPool(load, data.shape, slots, data, lambda task: task[0].name) as pool:
        yield from pool.in_order((task, data.shape) for task in chosen)
