"""Streaming of training clips from remote WebDataset shards: URLs and commands (`data.stream`).

A stream has no index: every rank reads all shards again and again, in its own random order, and shuffles samples in a
buffer. So any number of steps is possible, but the order is not a function of the step, and a resumed run gets other
samples.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odvae.clips.clip import frames_at_rate
from odvae.clips.dataset import ClipDataset
from odvae.clips.pool import AHEAD, ClipPool, ClipTicket
from odvae.clips.samplers import StepSampler
from odvae.clips.settings import DataSettings
from odvae.clips.stream_reader import Dropped, PassEnded, ShardFailed, Streamed, StreamReader
from odvae.clips.video_set import is_held_out
from odvae.running.distributed import uses_cuda
from odvae.running.errors import InputError
from odvae.running.failures import Failure, Failures
from odvae.running.seeds import derive_seed
from odvae.running.text import printable
from odvae.shards.facts import checked_about, own_facts
from odvae.shards.remote_shards import expand_urls
from odvae.shards.samples import Member, Sample, group_in
from odvae.video.extensions import IMAGE_EXTENSIONS

# Minimum denominator of the share of failures, so that one early failure does not end the run.
_FAIR_COUNT = 1000

# The run ends after this many successive videos without a usable clip.
_MOST_REFUSED = 1000

# The run ends if no new video for training arrives for this many times `data.stream_seconds`.
_MAX_TIMEOUTS = 3

# Number of failed shards that are printed as they occur, and of lines per kind in the final error; others are counted.
_MOST_NAMED = 10


@dataclass(frozen=True)
class SpooledSample(Sample):
    """A streamed sample in a file of its own; messages name it by the shard it came from."""

    url: str = ""

    @property
    def name(self) -> str:
        return streamed_name(self.url, self.key)


def streamed_name(url: str, key: str) -> str:
    """The name of a streamed sample in messages."""
    return printable(f"{url}:{key}")


def streamed_loader(dataset: ClipDataset, sampler: StepSampler) -> Iterator[dict[str, Tensor]]:
    """Same as `endless_loader`, with videos from `data.stream` in place of the data set's.

    Held-out videos in the stream (recognized by their keys) and videos that are too short are skipped. Raises
    InputError, with all reasons, if whole passes give no clip, or no video arrives for too long.
    """
    data, plan = dataset.data, sampler.plan
    shape, ahead = data.shape, AHEAD if data.workers else 1

    def load(task: tuple[Sample, int]) -> Tensor:
        return dataset.clip_of(*task)

    seed = derive_seed(dataset.seed, "stream", plan.rank, sampler.start)
    with (
        tempfile.TemporaryDirectory(prefix="odvae-") as spool,
        ClipPool(load, shape, ahead * plan.batch_size, data, lambda task: task[0].name) as pool,
        WantedVideos(data, seed, Path(spool), verbose=plan.rank == 0) as videos,
    ):
        pending: deque[tuple[list[int], list[tuple[SpooledSample, ClipTicket]]]] = deque()

        def submit(number: int) -> tuple[SpooledSample, ClipTicket]:
            sample = videos.next()
            return sample, pool.submit((sample, number), shape)

        for numbers in sampler:
            pending.append((numbers, [submit(number) for number in numbers]))
            if len(pending) < ahead:
                continue
            batch_numbers, batch = pending.popleft()
            video = torch.empty((len(batch), *shape), dtype=torch.uint8, pin_memory=uses_cuda())
            for i, (sample, ticket) in enumerate(batch):
                while isinstance(clip := pool.clip(ticket), Failure):
                    videos.refuse(sample, clip)
                    os.unlink(sample.shard)
                    sample, ticket = submit(batch_numbers[i])
                video[i] = clip
                videos.use()
                os.unlink(sample.shard)
            yield {"video": video, "number": torch.tensor(batch_numbers)}


class WantedVideos:
    """The videos of the stream that training can use, as files in `spool`; all others are counted and named.

    `verbose`: whether this rank prints messages; errors are raised on every rank.
    """

    def __init__(self, data: DataSettings, seed: int, spool: Path, verbose: bool) -> None:
        assert data.stream is not None
        self.data, self.verbose = data, verbose
        self.files = (spool / str(i) for i in itertools.count())
        self.failures = Failures(_FAIR_COUNT, data.failures_allowed, "streamed videos", prints=verbose)
        self.refused: dict[str, str] = {}  # name -> why no clip could be read; not tried again
        self.failed_shards: dict[str, str] = {}  # shard -> its first failure
        self.failures_printed = 0
        self.dropped: Counter[str] = Counter()
        self.used = 0
        self.received_videos = self.videos_per_pass = 0
        self.unwanted = self.refusals = 0  # in a row
        self.waited, self.received_before = 0.0, 0  # seconds since the last new video; bytes received until then
        self.urls = expand_urls(data.stream)
        self._print(f"streaming {data.stream} ({_count(len(self.urls), 'shard')}): order and resume are approximate")
        self.reader = StreamReader(self.urls, seed, data.stream_seconds, lambda sample: why_not(sample, data))

    def __enter__(self) -> WantedVideos:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        if self.used:
            self._print(f"streamed: {self.describe()}")

    def next(self) -> SpooledSample:
        """Wait for the next video for training."""
        self.waited, self.received_before = 0.0, self.reader.received
        while True:
            begin = time.monotonic()
            message = self.reader.next(seconds=1)
            self.waited += min(time.monotonic() - begin, 2)  # if it took longer, this process was suspended
            if isinstance(message, Streamed):
                self.received_videos += 1
                if self.received_videos == 1:
                    self._print_failures()
                name = streamed_name(message.url, message.key)
                if name not in self.refused:
                    self.unwanted = 0
                    self.failures.total += 1
                    return _spool(message, next(self.files))
                self._drop(name, self.refused[name])
                two_passes = 2 * self.videos_per_pass + 200  # plus the shuffle buffer
                if self.videos_per_pass and self.unwanted > two_passes:
                    self._end("none of its videos gives a clip")
            elif isinstance(message, Dropped):
                self._drop(streamed_name(message.url, message.key), message.reason)
            elif isinstance(message, ShardFailed):
                self._add_failure(message)
            elif isinstance(message, PassEnded):
                self._end_of_pass(message)
            self._end_after_timeout()

    def refuse(self, sample: SpooledSample, failure: Failure) -> None:
        """Record that no clip could be read from a video. Raises InputError after too many failures."""
        if failure.cause == "unfit":
            self.refused[sample.name] = failure.reason.removeprefix(f"{sample.name}: ")
            self._drop(sample.name, self.refused[sample.name])
        else:
            self.refused[sample.name] = "cannot be decoded"
            self.failures.add(sample.name, failure.reason)
        self.refusals += 1
        if self.refusals > _MOST_REFUSED:
            self._end(f"none of {self.refusals} videos in a row gives a clip")

    def use(self) -> None:
        """Count a clip."""
        self.used += 1
        self.refusals = 0

    def describe(self) -> str:
        """Counts of used and unused samples, by reason, as text."""
        parts = [f"{_count(self.used, 'clip')} used"]
        parts += [f"{_count(count, 'sample')} {reason}" for reason, count in self.dropped.most_common()]
        parts += (
            [f"{_count(len(self.failures.reasons), 'video')} could not be decoded"] if self.failures.reasons else []
        )
        parts += [f"{len(self.failed_shards)} of {len(self.urls)} shards failed"] if self.failed_shards else []
        return "; ".join(parts)

    def _drop(self, name: str, reason: str) -> None:
        if not self.dropped[reason] and reason != _HELD_OUT:
            self._print(f"left out: {name}: {reason} (others for this reason are counted)")
        self.dropped[reason] += 1
        self.unwanted += 1

    def _add_failure(self, failure: ShardFailed) -> None:
        if failure.url not in self.failed_shards:
            self.failed_shards[failure.url] = failure.reason
            if self.received_videos:  # before that, the final error may follow, which lists them
                self._print_failures()

    def _print_failures(self) -> None:
        """Print the failed shards that were not printed yet."""
        printed, self.failures_printed = self.failures_printed, len(self.failed_shards)
        for url, reason in list(self.failed_shards.items())[printed:_MOST_NAMED]:
            self._print(f"streamed shard failed: {url}: {reason}")
        if printed <= _MOST_NAMED < self.failures_printed:
            self._print("more streamed shards failed, which are only counted")

    def _end_of_pass(self, ended: PassEnded) -> None:
        if ended.wanted:
            if not self.videos_per_pass:
                self._print(f"first pass over the stream: {ended.wanted} videos for training; {self.describe()}")
            self.videos_per_pass = ended.wanted
        elif not self.videos_per_pass and not self.received_videos and ended.number == 1:
            self._end("a whole pass over its shards gives no video for training")

    def _end_after_timeout(self) -> None:
        timeout = self.data.stream_seconds
        if self.waited > _MAX_TIMEOUTS * timeout:
            received = (self.reader.received - self.received_before) / 1000
            self._end(
                f"no new video for training arrived for {_MAX_TIMEOUTS * timeout:g} s, only {received:.0f} kB of "
                f"shards ({_MAX_TIMEOUTS} times data.stream_seconds={timeout:g}; set it higher if the source is that "
                "slow)"
            )
        if not self.reader.alive:
            self._end("the process that reads it has ended, probably for lack of memory")

    def _end(self, what: str) -> None:
        most = _MOST_NAMED if self.verbose else 2  # the other ranks read the same shards
        listed = _first_of([f"{url}: {reason}" for url, reason in self.failed_shards.items()], "shard", most)
        listed += [f"{_count(count, 'sample')}: {reason}" for reason, count in self.dropped.most_common()]
        listed += _first_of(list(self.failures.reasons.values()), "video", most)
        raise InputError(f"data.stream={self.data.stream}: {what}" + "".join(f"\n  {line}" for line in listed))

    def _print(self, text: str) -> None:
        if self.verbose:
            print(text, file=sys.stderr, flush=True)


_HELD_OUT = "held out from training"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _first_of(lines: Sequence[str], what: str, most: int) -> list[str]:
    """The first lines, and the number of the others."""
    more = len(lines) - most
    return [*lines[:most], *([f"and {_count(more, 'more ' + what)}"] if more > 0 else [])]


def why_not(sample: dict[str, Any], data: DataSettings) -> str:
    """Why training does not use a streamed sample, judged by its members; empty if it does."""
    key, about = sample["__key__"], checked_about(sample.get("json", b"{}"))[0]
    if is_held_out(key, group_in(about), data.held_out):
        return _HELD_OUT
    members = {name: Member(0, 0) for name in sample if not name.startswith("__")}
    try:
        kind = Sample(key, Path(sample["__url__"]), members).video_member
    except InputError:
        return "has no video" + (" (several dots in its name?)" if any("." in name for name in members) else "")
    if kind in IMAGE_EXTENSIONS and data.span > 1:
        return "is an image"
    facts = own_facts(key, about)
    too_short = facts is not None and frames_at_rate(facts, data.fps) < data.span
    return f"is shorter than the {data.span} frames a clip spans" if too_short else ""


def _spool(streamed: Streamed, path: Path) -> SpooledSample:
    """Write a streamed sample to a file that workers can read."""
    members, offset = {}, 0
    with open(path, "wb") as file:
        for name, value in streamed.members.items():
            file.write(value)
            members[name] = Member(offset, len(value))
            offset += len(value)
    return SpooledSample(streamed.key, path, members, url=streamed.url)
