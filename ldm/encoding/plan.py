"""Which clips of the videos are encoded, at which size and into which shard, planned before anything is decoded.

Every clip is encoded separately, from its first frame. Clips are not slices of a longer latent: the VAE compresses a
clip's first frame alone, so a slice that begins later is not the latent of any clip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.encoding.settings import BucketSettings, ClipStart, EncodeSettings
from odvae.clips.clip import frame_count, frame_size
from odvae.clips.settings import DataSettings
from odvae.index.folder_index import IndexedSamples
from odvae.running.errors import InputError
from odvae.running.seeds import numpy_generator
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


def clip_starts(frames: int, span: int, clips: int, start: ClipStart = "first", *position: int | str) -> list[int]:
    """First frames of `clips` clips of `span` frames in a video of `frames` frames.

    "first": spread evenly over the video, from its beginning to its end; a single clip begins at frame 0. Otherwise the
    possible first frames are divided into as many equal ranges as there are clips, and each clip begins in the "middle"
    of its own, or at a "random" frame of it, a function of `position`. Duplicates are dropped, so a short video gives
    fewer clips.
    """
    if start == "first":
        return sorted({round(clip * (frames - span) / max(1, clips - 1)) for clip in range(clips)})
    within = [0.5] * clips if start == "middle" else numpy_generator(*position, "clip start").random(clips).tolist()
    possible = frames - span + 1
    return sorted({min(frames - span, int((clip + share) / clips * possible)) for clip, share in enumerate(within)})


def plan_clips(
    samples: Sequence[Sample],
    buckets: Sequence[BucketSettings],
    data: DataSettings,
    settings: EncodeSettings,
    seed: int,
) -> tuple[dict[str, list[PlannedClip]], list[str]]:
    """The clips of these videos in order, by bucket name, and the keys of the videos too short for every bucket.

    With `settings.flip` also the mirrored clips of videos whose captions and class do not mention left or right.
    """
    planned: dict[str, list[PlannedClip]] = {bucket.name: [] for bucket in buckets}
    too_short = []
    for sample in samples:
        frames = frame_count(sample, data.fps)
        height, width = frame_size(sample) if len(buckets) > 1 else (1, 1)
        bucket = choose_bucket(frames, height, width, buckets, data)
        if bucket is None:
            too_short.append(sample.key)
            continue
        span = bucket.clip_settings(data).span
        starts = clip_starts(frames, span, settings.clips_per_video, settings.start, seed, sample.key)
        mirrored = settings.flip and not mentions_a_side(sample)
        for index, start in enumerate(starts):
            for flipped in (False, True) if mirrored else (False,):
                planned[bucket.name].append(PlannedClip(sample, index, start, flipped))
    return planned, too_short


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
    of_source: tuple[str, ...] = ()
    """Names of all jobs of the same video shard, this one included."""
    too_short: tuple[str, ...] = ()
    """Keys of the video shard's videos that are in none of them."""

    def record(self, folder: Path) -> Path:
        """Path of the job's record, which is written when the job is done."""
        return record_path(folder, self.name)

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


def record_path(folder: Path, name: str) -> Path:
    """Path of the record of the latent shard `name`."""
    return folder / "shards" / f"{Path(name).stem}.json"


@dataclass(frozen=True)
class SourcePlan:
    """The jobs of one video shard, in the order of the buckets, and the keys of its videos that are in none of them."""

    jobs: list[ShardJob]
    too_short: list[str]


def plan_source(
    source: Path, samples: Sequence[Sample], settings: EncodeSettings, data: DataSettings, seed: int
) -> SourcePlan:
    """Plan the encoding of one video shard; buckets without clips have no job."""
    buckets = settings.buckets_for(data)
    planned, too_short = plan_clips(samples, buckets, data, settings, seed)
    full = [bucket for bucket in buckets if planned[bucket.name]]
    names = tuple(f"{bucket.name}-{source.name}" if settings.buckets else source.name for bucket in full)
    jobs = [
        ShardJob(source, len(samples), bucket, planned[bucket.name], name, names, tuple(too_short))
        for bucket, name in zip(full, names, strict=True)
    ]
    return SourcePlan(jobs, too_short)


def samples_by_shard(samples: Sequence[Sample]) -> dict[Path, Sequence[Sample]]:
    """The samples of each shard, in the order of the shards."""
    if isinstance(samples, IndexedSamples):
        return dict(samples.by_shard())
    by_shard: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_shard.setdefault(sample.shard, []).append(sample)
    return dict(by_shard)
