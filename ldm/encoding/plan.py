"""Which clips of the videos are encoded, at which size and into which shard, planned before anything is decoded.

Every clip is encoded separately, from its first frame. Clips are not slices of a longer latent: the VAE compresses a
clip's first frame alone, so a slice that begins later is not the latent of any clip.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.encoding.job_records import read_job_record
from ldm.encoding.settings import BucketSettings, EncodeSettings
from odvae.clips.clip import frame_count, frame_size
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError
from odvae.shards.captions import captions_in
from odvae.shards.samples import Sample

# Words that are wrong for the mirror image of a video.
_SIDES = re.compile(r"(?<![a-z])(left|right|(left|right)wards?|((counter|anti)-?)?clockwise)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class PlannedClip:
    """One clip to encode: its index among the clips of its video, its first frame, and whether it is mirrored."""

    sample: Sample
    index: int
    start: int
    flip: bool


def choose_bucket(
    frames: int, height: int, width: int, buckets: Sequence[BucketSettings], data: DataSettings
) -> BucketSettings | None:
    """The bucket of a video of this size; None where the video is too short for all.

    Of the buckets it is long enough for, those with the most frames; of these, the one with the nearest aspect ratio;
    of equally near ones, the largest that needs no upscaling, else the smallest.
    """
    long_enough = [bucket for bucket in buckets if bucket.clip_settings(data).span <= frames]
    longest = max((bucket.frames for bucket in long_enough), default=0)
    fitting = [bucket for bucket in long_enough if bucket.frames == longest]

    def cost(bucket: BucketSettings) -> tuple[float, bool, int]:
        distance = abs(math.log(bucket.width / bucket.height) - math.log(width / height))
        upscaled, area = bucket.height > height or bucket.width > width, bucket.height * bucket.width
        return round(distance, 6), upscaled, area if upscaled else -area

    return min(fitting, key=cost, default=None)


def clip_starts(frames: int, span: int, clips: int) -> list[int]:
    """First frames of `clips` clips of `span` frames, spread evenly over a video; a single clip begins at frame 0.

    Duplicates are dropped, so a short video gives fewer.
    """
    if clips == 1:
        return [0]
    return sorted({round(clip * (frames - span) / (clips - 1)) for clip in range(clips)})


def plan_clips(
    samples: Sequence[Sample],
    buckets: Sequence[BucketSettings],
    data: DataSettings,
    clips_per_video: int,
    flip: bool,
) -> dict[str, list[PlannedClip]]:
    """The clips of these videos in order, by bucket name. Videos too short for every bucket give none.

    `flip`: also the mirrored clips of videos whose captions and class do not mention left or right.
    """
    planned: dict[str, list[PlannedClip]] = {bucket.name: [] for bucket in buckets}
    for sample in samples:
        frames = frame_count(sample, data.fps)
        height, width = frame_size(sample) if len(buckets) > 1 else (1, 1)
        bucket = choose_bucket(frames, height, width, buckets, data)
        if bucket is None:
            continue
        span = bucket.clip_settings(data).span
        mirrored = flip and not mentions_a_side(sample)
        for index, start in enumerate(clip_starts(frames, span, clips_per_video)):
            for flipped in (False, True) if mirrored else (False,):
                planned[bucket.name].append(PlannedClip(sample, index, start, flipped))
    return planned


def mentions_a_side(sample: Sample) -> bool:
    """Whether a caption or the class of a video has a word, in English, that is wrong for its mirror image."""
    try:
        texts = (*captions_in(sample), str(sample.read_json().get("label")))
    except InputError:  # the video is left out, with this error, when it is encoded
        return False
    return any(_SIDES.search(text) for text in texts)


@dataclass(frozen=True)
class ShardJob:
    """One unit of work: the clips of one bucket from one video shard, encoded into one latent shard."""

    source: Path
    samples: int
    bucket: BucketSettings
    clips: list[PlannedClip]
    name: str

    def record(self, folder: Path) -> Path:
        """Path of the job's record, which is written when the job is done."""
        return folder / "shards" / f"{Path(self.name).stem}.json"

    def is_done(self, folder: Path) -> bool:
        """Whether the job's record and shard exist; a job whose clips all failed has no shard."""
        record = self.record(folder)
        return record.is_file() and ((folder / self.name).is_file() or read_job_record(record)["entries"] == 0)

    def pieces(self, settings: EncodeSettings, data: DataSettings) -> list[tuple[DataSettings, int]]:
        """The pieces in which each clip is decoded: (settings, offset from the clip's first frame).

        One piece, or several for clips longer than `stream_frames`.
        """
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

    def batches(self, settings: EncodeSettings) -> list[list[PlannedClip]]:
        """The clips in batches; clips longer than `stream_frames` one at a time."""
        size = settings.batch_size if self.bucket.frames <= settings.stream_frames else 1
        return [self.clips[i : i + size] for i in range(0, len(self.clips), size)]


def plan_shard_jobs(samples: Sequence[Sample], settings: EncodeSettings, data: DataSettings) -> list[ShardJob]:
    """The jobs of all videos, ordered by shard and bucket; those without clips are left out.

    Raises InputError where no video is long enough for any bucket.
    """
    buckets = settings.buckets_for(data)
    by_shard: dict[Path, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_shard[sample.shard].append(sample)
    jobs = []
    for shard, members in by_shard.items():
        planned = plan_clips(members, buckets, data, settings.clips_per_video, settings.flip)
        for bucket in buckets:
            if clips := planned[bucket.name]:
                name = f"{bucket.name}-{shard.name}" if settings.buckets else shard.name
                jobs.append(ShardJob(shard, len(members), bucket, clips, name))
    if not jobs:
        raise InputError("no video is long enough for any of encode.buckets")
    return jobs
