"""The usable videos of a shard folder, and which of them are held out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from odvae.clips.clip import frame_count, known_frame_count
from odvae.clips.settings import DataSettings, LoadingSettings
from odvae.running.errors import InputError
from odvae.running.seeds import derive_seed
from odvae.running.worker_pool import Failure, WorkerPool
from odvae.shards.tars import Sample, index_shards, list_shards, video_of


def is_held_out(key: str, share: float) -> bool:
    """Whether a video belongs to the held-out split: a function of its key alone, the same in every stage.

    All scenes of a video are in one split.
    """
    return derive_seed("held out", video_of(key)) / 2**63 < share


class VideoSet:
    """The usable videos of a shard folder, split into training and held-out ones.

    `samples` are all that can be read, `train` and `held_out` those as long as a clip; `left_out` says of every other
    one why ("name: 9 frames", "name has no video"). Raises InputError where no video is left for a split.
    """

    def __init__(self, folder: str | Path, data: DataSettings, command: str) -> None:
        self.data = data
        self.samples: list[Sample] = []
        self.train: list[Sample] = []
        self.held_out: list[Sample] = []
        self.left_out: list[str] = []
        samples = index_shards(list_shards(folder, command))
        for sample, frames in zip(samples, frame_counts(samples, data.fps, data), strict=True):
            if isinstance(frames, Failure):
                self.left_out.append(frames.reason)
                continue
            self.samples.append(sample)
            if frames < data.span:
                self.left_out.append(f"{sample.name}: {frames} frames")
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

    def describe(self) -> str:
        """Counts, and the first videos left out."""
        text = f"{len(self.train)} training and {len(self.held_out)} held-out videos"
        if self.left_out:
            text += f"; {len(self.left_out)} left out, unusable or shorter than {self.data.span} frames: " + ", ".join(
                self.left_out[:5]
            )
        return text


def frame_counts(samples: list[Sample], fps: float | None, loading: LoadingSettings) -> Iterator[int | Failure]:
    """Frames of each video; those whose .json does not say are decoded in guarded workers."""

    def without_decoding(sample: Sample) -> int | Failure | None:
        try:
            return known_frame_count(sample, fps)
        except InputError as error:
            return Failure(str(error))

    known = [without_decoding(sample) for sample in samples]
    unknown = [sample for sample, frames in zip(samples, known, strict=True) if frames is None]
    workers = loading.workers if unknown else 0
    limits = (loading.decode_seconds, loading.decode_gib)
    with WorkerPool(lambda sample: frame_count(sample, fps), workers, *limits) as pool:
        decoded = pool.map(unknown, ahead=4 * workers)
        for frames in known:
            yield next(decoded) if frames is None else frames
