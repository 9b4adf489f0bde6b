"""Which clips of the videos are encoded, at which size, into which shard: declared before anything is decoded.

Every clip is encoded from its own first frame. None is a slice of a longer latent: the VAE compresses a clip's first
frame alone, so a slice that begins later is not the latent of any clip.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from odvae.clips.clip import frame_count, frame_size
from odvae.clips.settings import DataSettings
from odvae.frame_counts import check_clip_size
from odvae.running.errors import InputError
from odvae.running.files import read_json
from odvae.running.settings import MayChange, Settings
from odvae.shards.tars import Sample


class BucketSettings(Settings):
    """One size of clips: videos and images of different shapes go where they fit best."""

    frames: int = Field(ge=1)
    """Frames a clip, as many as the VAE takes; a bucket of 1 frame is for images, and for videos too short for the
    others."""
    height: int = Field(ge=1)
    """Clip height in pixels, a multiple of the VAE's spatial compression ratio."""
    width: int = Field(ge=1)
    """Clip width in pixels, a multiple as the height."""

    @property
    def name(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def of_clips(cls, data: DataSettings) -> BucketSettings:
        """The size of the experiment's own clips."""
        return cls(frames=data.frames, height=data.height, width=data.width)

    @classmethod
    def from_name(cls, name: str) -> BucketSettings:
        frames, height, width = map(int, name.split("x"))
        return cls(frames=frames, height=height, width=width)

    def clip_settings(self, data: DataSettings) -> DataSettings:
        """`data` with this bucket's size."""
        return data.model_copy(update={"frames": self.frames, "height": self.height, "width": self.width})


class EncodeSettings(Settings):
    renamed_section: ClassVar = "latents"
    renamed_keys: ClassVar = {"stored": "posterior"}

    buckets: tuple[BucketSettings, ...] = ()
    """Sizes of clips; each video goes where it fits best, images to a bucket of 1 frame. Empty: one bucket, of data's
    frames, height and width."""
    clips_per_video: int = Field(1, ge=1)
    """Clips encoded of each video, their first frames spread evenly over it."""
    flip: bool = False
    """Whether each clip's mirror image is encoded too, as an entry of its own."""
    batch_size: Annotated[int, MayChange] = Field(16, ge=1)
    """Clips encoded at a time."""
    stream_frames: int = Field(65, ge=5)
    """Longer clips are decoded and encoded in pieces of this many frames, one clip at a time, in constant memory."""
    dtype: Literal["bf16", "fp16"] = "bf16"
    """How means, standard deviations and text embeddings are stored."""
    posterior: Literal["moments", "mean"] = "moments"
    """Both moments of a clip's posterior, of which training draws anew each time; or the mean alone, half the size."""

    @field_validator("buckets")
    @classmethod
    def _no_bucket_is_there_twice(cls, buckets: tuple[BucketSettings, ...]) -> tuple[BucketSettings, ...]:
        names = [bucket.name for bucket in buckets]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"there twice: {', '.join(repeated)}")
        return buckets

    def check_sizes(self, data: DataSettings, ratios: tuple[int, int]) -> None:
        """Raise InputError for clips that a VAE with these (temporal, spatial) compression ratios does not take."""
        for bucket in self.buckets_for(data):
            section = f"encode.buckets: {bucket.name}" if self.buckets else "data"
            check_clip_size(bucket.frames, bucket.height, bucket.width, ratios, section)

    def buckets_for(self, data: DataSettings) -> tuple[BucketSettings, ...]:
        """The buckets, or the only one."""
        return self.buckets or (BucketSettings.of_clips(data),)


@dataclass(frozen=True)
class DeclaredClip:
    """One clip to encode: number `index` of its video, from frame `start` on, mirrored or not."""

    sample: Sample
    index: int
    start: int
    flip: bool


def choose_bucket(
    frames: int, height: int, width: int, buckets: Sequence[BucketSettings], data: DataSettings
) -> BucketSettings | None:
    """The bucket of a video: of those it is long enough for, the longest; of these the nearest aspect ratio; of these
    the largest that needs no enlarging, or the smallest. None where it is too short for all."""
    long_enough = [bucket for bucket in buckets if bucket.clip_settings(data).span <= frames]
    longest = max((bucket.frames for bucket in long_enough), default=0)
    fitting = [bucket for bucket in long_enough if bucket.frames == longest]

    def badness(bucket: BucketSettings) -> tuple[float, bool, int]:
        distance = abs(math.log(bucket.width / bucket.height) - math.log(width / height))
        enlarged, area = bucket.height > height or bucket.width > width, bucket.height * bucket.width
        return round(distance, 6), enlarged, area if enlarged else -area

    return min(fitting, key=badness, default=None)


def clip_starts(frames: int, span: int, clips: int) -> list[int]:
    """First frames of `clips` clips spread evenly over a video; a single one begins at frame 0. No two are the same,
    so a short video gives fewer."""
    if clips == 1:
        return [0]
    return sorted({round(clip * (frames - span) / (clips - 1)) for clip in range(clips)})


def declare_clips(
    samples: Sequence[Sample],
    buckets: Sequence[BucketSettings],
    data: DataSettings,
    clips_per_video: int,
    flip: bool,
) -> dict[str, list[DeclaredClip]]:
    """Every clip of these videos by bucket name, in order. Videos too short for every bucket give none."""
    declared: dict[str, list[DeclaredClip]] = {bucket.name: [] for bucket in buckets}
    for sample in samples:
        frames = frame_count(sample, data.fps)
        height, width = frame_size(sample) if len(buckets) > 1 else (1, 1)
        bucket = choose_bucket(frames, height, width, buckets, data)
        if bucket is None:
            continue
        span = bucket.clip_settings(data).span
        for index, start in enumerate(clip_starts(frames, span, clips_per_video)):
            for flipped in (False, True) if flip else (False,):
                declared[bucket.name].append(DeclaredClip(sample, index, start, flipped))
    return declared


@dataclass(frozen=True)
class ShardJob:
    """What is encoded in one go: the clips of one bucket from one video shard, into one latent shard."""

    source: Path
    samples: int
    bucket: BucketSettings
    clips: list[DeclaredClip]
    name: str

    def record(self, folder: Path) -> Path:
        """Where its record lies, which says that the job is done."""
        return folder / "shards" / f"{Path(self.name).stem}.json"

    def is_done(self, folder: Path) -> bool:
        """A job may have no entry and then no shard: every clip failed."""
        record = self.record(folder)
        return record.is_file() and ((folder / self.name).is_file() or read_json(record)["entries"] == 0)

    def pieces(self, settings: EncodeSettings, data: DataSettings) -> list[tuple[DataSettings, int]]:
        """How each clip is decoded: (settings, frames after its first) of one piece, or of several where it is long."""
        whole = self.bucket.clip_settings(data)
        if whole.frames <= settings.stream_frames:
            return [(whole, 0)]
        return [
            (
                whole.model_copy(update={"frames": min(settings.stream_frames, whole.frames - first)}),
                first * data.stride,
            )
            for first in range(0, whole.frames, settings.stream_frames)
        ]

    def batches(self, settings: EncodeSettings) -> list[list[DeclaredClip]]:
        """The clips as they are encoded together: long ones alone."""
        size = settings.batch_size if self.bucket.frames <= settings.stream_frames else 1
        return [self.clips[i : i + size] for i in range(0, len(self.clips), size)]


def plan_shard_jobs(samples: Sequence[Sample], settings: EncodeSettings, data: DataSettings) -> list[ShardJob]:
    """The jobs of all videos, in order of shard and bucket; those without a clip are left out."""
    buckets = settings.buckets_for(data)
    by_shard: dict[Path, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_shard[sample.shard].append(sample)
    jobs = []
    for shard, members in by_shard.items():
        declared = declare_clips(members, buckets, data, settings.clips_per_video, settings.flip)
        for bucket in buckets:
            if clips := declared[bucket.name]:
                name = f"{bucket.name}-{shard.name}" if settings.buckets else shard.name
                jobs.append(ShardJob(shard, len(members), bucket, clips, name))
    if not jobs:
        raise InputError("no video is long enough for any of encode.buckets")
    return jobs
