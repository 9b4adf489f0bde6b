"""Training clips from shards that are not on disk: URLs and pipes, streamed by webdataset.

A stream has no index: shards are drawn at random, again and again, and samples are shuffled in a buffer. So every rank
takes as many steps as it likes, but order is no function of the step, and a resumed run begins with other samples.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader

from odvae.clips.clip import frames_from_metadata
from odvae.clips.dataset import ClipDataset
from odvae.clips.pool import AHEAD, ClipPool, ClipTicket
from odvae.clips.sampling import StepSampler
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import is_held_out
from odvae.running.distributed import uses_cuda
from odvae.running.seeds import derive_seed
from odvae.running.stop_signals import leave_stop_signals_to_parent, workers_begin_shielded
from odvae.running.worker_pool import Failure, Failures
from odvae.shards.tars import Sample, check_member_name
from odvae.video.images import IMAGE_EXTENSIONS

# Samples that a stream mixes; each is a whole video in memory.
_SHUFFLED = 100

# The share of failures is taken of this many samples at first, so that one early failure ends no run.
_FAIR_COUNT = 1000


def streamed_loader(dataset: ClipDataset, sampler: StepSampler) -> Iterator[dict[str, Tensor]]:
    """As `endless_loader`, with videos from `data.stream` in place of the data set's own.

    Held-out videos in the stream, known by their keys, are passed over, and so are those that say they are too short.
    """
    data = dataset.data
    assert data.stream is not None
    if sampler.plan.rank == 0:
        print(f"streaming {data.stream}: order and resume are approximate", file=sys.stderr, flush=True)
    failures = Failures(_FAIR_COUNT, data.failures_allowed, "streamed videos")
    videos = _stream(data.stream, derive_seed(dataset.seed, "stream", sampler.plan.rank, sampler.start))
    videos = (video for video in videos if _wanted(video, data))
    shape, ahead = data.shape, AHEAD if data.workers else 1
    with (
        tempfile.TemporaryDirectory(prefix="odvae-") as spool,
        ClipPool(lambda task: dataset.clip_of(*task), shape, ahead * sampler.plan.batch_size, data) as pool,
    ):
        files = (Path(spool) / str(i) for i in itertools.count())

        def submit(number: int) -> tuple[Sample, ClipTicket]:
            sample = _spool(next(videos), next(files))
            failures.total += 1
            return sample, pool.submit((sample, number), shape)

        pending: deque[tuple[list[int], list[tuple[Sample, ClipTicket]]]] = deque()
        for numbers in sampler:
            pending.append((numbers, [submit(number) for number in numbers]))
            if len(pending) < ahead:
                continue
            batch_numbers, batch = pending.popleft()
            video = torch.empty((len(batch), *shape), dtype=torch.uint8, pin_memory=uses_cuda())
            for i, (sample, ticket) in enumerate(batch):
                while isinstance(clip := pool.clip(ticket), Failure):
                    failures.add(sample.key, clip.reason)
                    os.unlink(sample.shard)
                    sample, ticket = submit(batch_numbers[i])
                video[i] = clip
                os.unlink(sample.shard)
            yield {"video": video, "number": torch.tensor(batch_numbers)}


def _stream(urls: str, seed: int) -> Iterator[dict]:
    """webdataset's samples, members as bytes, read and shuffled by a process of their own; without end."""
    pipeline = wds.DataPipeline(
        wds.ResampledShards(urls, deterministic=True, seed=seed, worker_seed=lambda: seed),
        wds.tarfile_to_samples(handler=_name_and_go_on),
        wds.shuffle(_SHUFFLED, initial=min(_SHUFFLED, 10), seed=seed),
    )
    how = {"num_workers": 1, "prefetch_factor": 4, "worker_init_fn": leave_stop_signals_to_parent}
    with workers_begin_shielded():
        return iter(DataLoader(pipeline, batch_size=None, **how))


def _name_and_go_on(error: Exception) -> bool:
    """What webdataset asks when a shard cannot be read to its end."""
    print(f"left out: the rest of a streamed shard: {error}", file=sys.stderr, flush=True)
    return True


def _wanted(members: dict, data: DataSettings) -> bool:
    key = members["__key__"]
    for name in members:
        if not name.startswith("__"):
            check_member_name(f"{key}.{name}", members["__url__"])
    if is_held_out(key, data.held_out):
        return False
    if data.span > 1 and any(name.lower() in IMAGE_EXTENSIONS for name in members):
        return False
    try:
        about = json.loads(members.get("json", b"{}"))
    except ValueError:
        return False
    frames = frames_from_metadata(about, data.fps)
    return frames is None or frames >= data.span


def _spool(members: dict, path: Path) -> Sample:
    """One streamed sample as a file, where workers can read it."""
    places, offset = {}, 0
    with open(path, "wb") as file:
        for name, value in members.items():
            if not name.startswith("__"):
                file.write(value)
                places[name.lower()] = (offset, len(value))
                offset += len(value)
    return Sample(members["__key__"], path, places)
