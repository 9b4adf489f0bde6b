"""The usable videos of a shard folder, split into training and held-out videos."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from accelerate.utils import gather_object

from odvae.clips.clip import frames_at_rate
from odvae.clips.settings import DataSettings, LoadingSettings
from odvae.running.account import HIGH_RANGE, NO_VIDEO, TOO_SHORT, UNREADABLE, Account
from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.shards.facts import ExamineLimits, find_facts
from odvae.shards.samples import Sample, split_position
from odvae.shards.tars import index_shards, list_shards
from odvae.video.display import HDR_NAMES


def is_held_out(key: str, share: float) -> bool:
    """Whether a video belongs to the held-out split: a function of its key, so it is the same in every stage.

    All scenes of a video are in the same split.
    """
    return split_position(key) < share


class VideoSet:
    """The usable videos of a shard folder, split into training and held-out ones.

    `samples` are all readable videos; `train` and `held_out` are those that are long enough for a clip. `left_out` has
    the reasons for all others ("name: 9 frames", "name has no video"). Raises InputError if a split is empty.
    """

    def __init__(self, folder: str | Path, data: DataSettings, command: str) -> None:
        self.data = data
        self.samples: list[Sample] = []
        self.train: list[Sample] = []
        self.held_out: list[Sample] = []
        self.left_out: list[str] = []
        self.unusable: list[tuple[Sample, str, str]] = []
        """Videos that are not among `samples`, with a common reason and the details."""
        self.too_short: list[tuple[Sample, str]] = []
        self.failed: dict[str, str] = {}
        """Names of videos that this process could not decode later -> why."""
        self.ignored: Counter[str] = Counter()
        self.high_range: Counter[str] = Counter()
        samples = index_shards(list_shards(folder, command))
        for sample, facts in find_facts(samples, examine_limits(data), self.ignored):
            if isinstance(facts, Failure):
                self.left_out.append(facts.reason)
                self.unusable.append((sample, UNREADABLE if sample.has_video else NO_VIDEO, facts.reason))
                continue
            if facts.transfer != "sdr":
                self.high_range[HDR_NAMES[facts.transfer]] += 1
                if data.hdr == "leave_out":
                    self.left_out.append(f"{sample.name}: high dynamic range, {HDR_NAMES[facts.transfer]} (data.hdr)")
                    self.unusable.append((sample, HIGH_RANGE, f"{HDR_NAMES[facts.transfer]} (data.hdr=leave_out)"))
                    continue
            self.samples.append(sample)
            frames = frames_at_rate(facts, data.fps)
            if frames < data.span:
                self.left_out.append(f"{sample.name}: {frames} frames")
                self.too_short.append((sample, f"{frames} frames, a clip spans {data.span}"))
                continue
            split = self.held_out if is_held_out(sample.key, data.held_out) else self.train
            split.append(sample)
        if not self.train or not self.held_out:
            raise InputError(
                f"{folder}: {len(self.train)} training and {len(self.held_out)} held-out videos; both splits need one. "
                f"Of {len(samples)} videos {len(self.left_out)} are unusable or shorter than the {data.span} frames a "
                f"clip spans (data.frames={data.frames}, data.stride={data.stride}); data.held_out={data.held_out}"
                + "".join(f"\n  {line}" for line in self.left_out[:10])
            )

    def account(self) -> Account:
        """Account of the folder's videos, for a stage that does not use captions. Collective: all ranks' failures."""
        account = Account("videos")
        for sample, reason, details in self.unusable:
            account.leave_out(sample.name, reason, details)
        for sample, details in self.too_short:
            account.leave_out(sample.name, TOO_SHORT, details)
        failed = {name: why for of_rank in gather_object([self.failed]) for name, why in of_rank.items()}
        for name, why in failed.items():
            account.leave_out(name, UNREADABLE, why)
        usable = (sample for sample in (*self.train, *self.held_out) if sample.name not in failed)
        account.used = sum(1 for _ in usable)
        return account

    def describe(self) -> str:
        """The counts, the first videos that are left out, and notes about the others, as text."""
        text = f"{len(self.train)} training and {len(self.held_out)} held-out videos"
        if self.left_out:
            text += f"; {len(self.left_out)} left out, unusable or shorter than {self.data.span} frames: " + ", ".join(
                self.left_out[:5]
            )
        if self.high_range:
            done = {"tone_map": "tone-mapped", "leave_out": "left out"}[self.data.hdr]
            text += f"; high dynamic range, {done} (data.hdr): {_counts(self.high_range)}"
        if self.ignored:
            text += f"; ignored in KEY.json files: {_counts(self.ignored)}"
        return text


def examine_limits(loading: LoadingSettings) -> ExamineLimits:
    """Limits for examining videos without known facts."""
    return ExamineLimits(loading.workers, loading.decode_seconds, loading.decode_gib)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())
