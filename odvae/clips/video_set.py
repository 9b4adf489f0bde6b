"""The usable videos of a shard folder, split into training and held-out videos."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from odvae.clips.clip import frames_at_rate
from odvae.clips.settings import DataSettings, LoadingSettings
from odvae.index.building import find_shards, open_index
from odvae.index.folder_index import Chunk, IndexedSamples
from odvae.index.rows import TRANSFERS
from odvae.index.video_rows import VideoIndexer
from odvae.running.account import HIGH_RANGE, NO_VIDEO, TOO_SHORT, UNREADABLE, Account
from odvae.running.distributed import gather_objects
from odvae.running.errors import InputError
from odvae.shards.facts import ExamineLimits
from odvae.shards.samples import Sample, split_position
from odvae.storage.paths import open_path
from odvae.video.display import HDR_NAMES

_SDR = TRANSFERS.index("sdr")


def is_held_out(key: str, group: str, share: float) -> bool:
    """Whether a video belongs to the held-out split: a function of its group, or, where that is empty, of its key, so
    it is the same in every stage.

    All videos of a group, and all scenes of a video, are in the same split.
    """
    return split_position(key, group) < share


class VideoSet:
    """The usable videos of a shard folder, a path or a URL, split into training and held-out ones.

    `samples` are all readable videos; `train` and `held_out` are those that are long enough for a clip. They are
    sequences on the folder's index (`odvae.index`), which is made at the first start, and hold no object a video.
    Raises InputError if a split is empty.
    """

    def __init__(self, folder: str | Path, data: DataSettings, command: str) -> None:
        self.data = data
        self.failed: dict[str, str] = {}
        """Names of videos that this process could not decode later -> why."""
        folder = open_path(folder)
        self.index = open_index(folder, find_shards(folder, command), VideoIndexer(examine_limits(data)))
        self.samples = self.index.select(self._is_usable)
        self.train = self.index.select(lambda chunk: self._is_long_enough(chunk) & ~self._is_held_out(chunk))
        self.held_out = self.index.select(lambda chunk: self._is_long_enough(chunk) & self._is_held_out(chunk))
        if not self.train or not self.held_out:
            raise InputError(
                f"{folder}: {len(self.train)} training and {len(self.held_out)} held-out videos; both splits need one. "
                f"Of {len(self.index)} videos {self.count_left_out} are unusable or shorter than the {data.span} "
                f"frames a clip spans (data.frames={data.frames}, data.stride={data.stride}); "
                f"data.held_out={data.held_out}. {self._remedy()}"
                + "".join(f"\n  {line}" for line in itertools.islice(self.each_left_out(), 10))
            )

    def _remedy(self) -> str:
        """What to do where a split is empty."""
        if self.train:
            return f"Raise data.held_out, or give more videos: {len(self.train)} are few for so small a share"
        if self.held_out:
            return "Lower data.held_out, or give more videos"
        return "Lower data.frames or data.stride, or give longer videos"

    def _is_usable(self, chunk: Chunk) -> np.ndarray:
        is_sdr = chunk.transfer == _SDR
        return (chunk.frames > 0) & (is_sdr if self.data.hdr == "leave_out" else True)

    def _is_long_enough(self, chunk: Chunk) -> np.ndarray:
        frames = chunk.frames
        if self.data.fps is not None:  # as `frames_at_rate`, for all rows at once
            resampled = (chunk.seconds * self.data.fps + 1e-6).astype(np.int64)
            frames = np.where(chunk.seconds > 0, resampled, frames)
        return self._is_usable(chunk) & (frames >= self.data.span)

    def _is_held_out(self, chunk: Chunk) -> np.ndarray:
        return chunk.split < self.data.held_out

    @property
    def not_held_out(self) -> IndexedSamples:
        """All readable videos and images that are not held out, also those that are shorter than a clip."""
        return self.index.select(lambda chunk: self._is_usable(chunk) & ~self._is_held_out(chunk))

    @property
    def has_training_captions(self) -> bool:
        """Whether any training video has a caption that can be read."""
        captioned = (
            self._is_long_enough(one) & ~self._is_held_out(one) & (one.captions > 0) for one in self.index.chunks
        )
        return any(mask.any() for mask in captioned)

    @property
    def count_left_out(self) -> int:
        """Number of samples that are in neither split."""
        return len(self.index) - len(self.train) - len(self.held_out)

    def each_left_out(self) -> Iterator[str]:
        """The reasons for all samples that are in neither split: "name: 9 frames", "name has no video"."""
        left_out = self.index.select(lambda chunk: ~self._is_long_enough(chunk))
        for row in left_out.rows:
            sample, problem = self.index.sample(row), self.index.problem(row)
            if problem:
                yield f"{sample.name}{problem}"
            elif (why := self._range_refused(sample)) is not None:
                yield f"{sample.name}: high dynamic range, {why} (data.hdr)"
            else:
                yield f"{sample.name}: {self._frames(sample)} frames"

    @property
    def left_out(self) -> list[str]:
        """The lines of `each_left_out`. Of a large folder there may be millions."""
        return list(self.each_left_out())

    def unusable(self) -> Iterator[tuple[Sample, str, str]]:
        """Samples that are not among `samples`, with a common reason and the details."""
        for row in self.index.select(lambda chunk: ~self._is_usable(chunk)).rows:
            sample, problem = self.index.sample(row), self.index.problem(row)
            if problem:
                yield sample, UNREADABLE if sample.has_video else NO_VIDEO, f"{sample.name}{problem}"
            else:
                yield sample, HIGH_RANGE, f"{self._range_refused(sample)} (data.hdr=leave_out)"

    def too_short(self) -> Iterator[tuple[Sample, str]]:
        """Videos among `samples` that are shorter than a clip, with the details."""
        for sample in self.index.select(lambda chunk: self._is_usable(chunk) & ~self._is_long_enough(chunk)):
            yield sample, f"{self._frames(sample)} frames, a clip spans {self.data.span}"

    def _range_refused(self, sample: Sample) -> str | None:
        refused = self.data.hdr == "leave_out" and sample.facts is not None and sample.facts.transfer != "sdr"
        return HDR_NAMES[sample.facts.transfer] if refused and sample.facts is not None else None

    def _frames(self, sample: Sample) -> int:
        assert sample.facts is not None
        return frames_at_rate(sample.facts, self.data.fps)

    def account(self) -> Account:
        """Account of the folder's videos, for a stage that does not use captions. Collective: all ranks' failures."""
        account = Account("videos")
        failed = {name: why for of_rank in gather_objects(self.failed) for name, why in of_rank.items()}
        failed_in_use = set(failed)
        for sample, reason, details in self.unusable():
            account.leave_out(sample.name, reason, details)
        for sample, details in self.too_short():
            account.leave_out(sample.name, TOO_SHORT, details)
            failed_in_use.discard(sample.name)
        for name, why in failed.items():
            account.leave_out(name, UNREADABLE, why)
        account.used = len(self.train) + len(self.held_out) - len(failed_in_use)
        return account

    def describe(self) -> str:
        """The counts, the first videos that are left out, and notes about the others, as text."""
        text = f"{len(self.train)} training and {len(self.held_out)} held-out videos"
        if self.count_left_out:
            first = ", ".join(itertools.islice(self.each_left_out(), 5))
            text += f"; {self.count_left_out} left out, unusable or shorter than {self.data.span} frames: {first}"
        if high_range := self._count_high_range():
            done = {"tone_map": "tone-mapped", "leave_out": "left out"}[self.data.hdr]
            text += f"; high dynamic range, {done} (data.hdr): {_counts(high_range)}"
        ignored: Counter[str] = sum((Counter(shard.ignored) for shard in self.index.header.shards), Counter())
        if ignored:
            text += f"; ignored in KEY.json files: {_counts(ignored)}"
        return text

    def _count_high_range(self) -> Counter[str]:
        counts = np.zeros(len(TRANSFERS), np.int64)
        for chunk in self.index.chunks:
            counts += np.bincount(chunk.transfer[chunk.frames > 0], minlength=len(TRANSFERS))
        return Counter(
            {HDR_NAMES[name]: int(n) for name, n in zip(TRANSFERS, counts, strict=True) if n and name != "sdr"}
        )


def examine_limits(loading: LoadingSettings) -> ExamineLimits:
    """Limits for examining videos without known facts."""
    return ExamineLimits(loading.workers, loading.decode_seconds, loading.decode_gib)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())
