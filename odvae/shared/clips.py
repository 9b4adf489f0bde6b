"""Training clips from video shards: which clip sample n is, is a pure function of (seed, n).

The order of samples, the first frame and the crop follow from the sample number alone. So any number of ranks and
worker processes reads the same clips, and a resumed run goes on with the very next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from odvae.shared.errors import InputError
from odvae.shared.seeds import derive_seed, numpy_generator, shuffled_index
from odvae.shared.settings import Settings
from odvae.shared.shards import Sample, index_shards, list_shards
from odvae.shared.video import VIDEO_EXTENSIONS, examine, read_frames


class DataSettings(Settings):
    shards: str | None = None
    """Folder of video shards (KEY.mp4 KEY.txt KEY.json); null: `shards/` in the run folder."""
    frames: int = Field(17, ge=1)
    """Frames a clip, 4k+1: the first frame is compressed alone, the others four by four."""
    height: int = Field(48, ge=8, multiple_of=8)
    """Clip height in pixels, a multiple of 8."""
    width: int = Field(48, ge=8, multiple_of=8)
    """Clip width in pixels, a multiple of 8."""
    stride: int = Field(1, ge=1)
    """Every stride-th frame of the video is taken."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of the videos kept from all training, chosen by the hash of their key."""
    workers: int = Field(1, ge=0)
    """Processes that decode clips, a rank; 0 decodes in the training process."""

    @field_validator("frames")
    @classmethod
    def _frames_are_4k_plus_1(cls, frames: int) -> int:
        return check_frames(frames)

    @property
    def span(self) -> int:
        """Video frames from a clip's first to its last, both counted."""
        return (self.frames - 1) * self.stride + 1


def check_frames(frames: int) -> int:
    """`frames`, which must be 4k+1; else InputError with the nearest numbers that are."""
    if frames % 4 != 1:
        raise InputError(f"frames must be 4k+1, found {frames}; nearest: {nearest_frame_counts(frames)}")
    return frames


def nearest_frame_counts(frames: int) -> str:
    below = max(1, (frames - 1) // 4 * 4 + 1)
    return f"{below} or {below + 4}"


def is_held_out(key: str, share: float) -> bool:
    """Whether a video belongs to the held-out split: a function of its key alone, the same in every stage."""
    return derive_seed("held out", key) / 2**63 < share


def video_member(sample: Sample) -> str:
    """The extension of the sample's video. Raises InputError where it has none."""
    for extension in VIDEO_EXTENSIONS:
        if extension in sample.members:
            return extension
    raise InputError(f"{sample.name} has no video, only {', '.join(sorted(sample.members))}")


def fit_frames(frames: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 (t, h, w, 3) -> uint8 (t, height, width, 3): cover the target (bicubic, antialiased), crop the centre."""
    video = torch.from_numpy(frames)
    _, h, w, _ = video.shape
    if (h, w) == (height, width):
        return video
    scale = max(height / h, width / w)
    size = [max(height, round(h * scale)), max(width, round(w * scale))]
    video = video.permute(0, 3, 1, 2)  # (t, 3, h, w)
    video = F.resize(video, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return F.center_crop(video, [height, width]).permute(0, 2, 3, 1).contiguous()


class VideoSet:
    """The usable videos of a shard folder, split into training and held-out ones.

    Videos shorter than a clip are left out and listed in `too_short` ("name: n frames").
    Raises InputError where no video is left for a split.
    """

    def __init__(self, folder: str | Path, data: DataSettings, command: str) -> None:
        self.data = data
        self.train: list[Sample] = []
        self.held_out: list[Sample] = []
        self.too_short: list[str] = []
        samples = index_shards(list_shards(folder, command))
        for sample in samples:
            frames = frame_count(sample)
            if frames < data.span:
                self.too_short.append(f"{sample.name}: {frames} frames")
                continue
            split = self.held_out if is_held_out(sample.key, data.held_out) else self.train
            split.append(sample)
        if not self.train or not self.held_out:
            raise InputError(
                f"{folder}: {len(self.train)} training and {len(self.held_out)} held-out videos; both splits need one. "
                f"Of {len(samples)} videos {len(self.too_short)} are shorter than the {data.span} frames a clip spans "
                f"(data.frames={data.frames}, data.stride={data.stride}); data.held_out={data.held_out}"
                + "".join(f"\n  {line}" for line in self.too_short[:10])
            )

    def describe(self) -> str:
        text = f"{len(self.train)} training and {len(self.held_out)} held-out videos"
        if self.too_short:
            text += f"; {len(self.too_short)} left out, shorter than {self.data.span} frames: " + ", ".join(
                self.too_short[:5]
            )
        return text


def frame_count(sample: Sample) -> int:
    """Frames of a sample's video, as its .json says; a video without that entry is decoded and counted."""
    frames = sample.read_json().get("frames")
    if isinstance(frames, int):
        return frames
    return examine(sample.read(video_member(sample)), sample.name).frames


class ClipDataset(Dataset):
    """Sample number n -> {"video": uint8 (t, h, w, 3), "number": n}. Infinite."""

    def __init__(self, samples: Sequence[Sample], data: DataSettings, seed: int) -> None:
        self.samples, self.data, self.seed = list(samples), data, seed

    def __getitem__(self, number: int) -> dict:
        sample = self.samples[shuffled_index(number, len(self.samples), self.seed)]
        last_start = frame_count(sample) - self.data.span
        start = int(numpy_generator(self.seed, "clip", number).integers(0, last_start + 1))
        return {"video": load_clip(sample, self.data, start), "number": number}


def load_clip(sample: Sample, data: DataSettings, start: int = 0) -> Tensor:
    """One clip of a video as uint8 (frames, height, width, 3)."""
    frames = read_frames(sample.read(video_member(sample)), sample.name, start, data.frames, data.stride)
    return fit_frames(frames, data.height, data.width)


class StepSampler:
    """Sample numbers for one rank, batch by batch, from optimiser step `start` on, without end.

    Step s sees the numbers s*B .. (s+1)*B - 1 with B = ranks * accumulate * batch, however B is made up.
    """

    def __init__(self, batch_size: int, accumulate: int, rank: int, ranks: int, start: int) -> None:
        self.batch_size, self.accumulate, self.rank, self.ranks, self.start = batch_size, accumulate, rank, ranks, start

    def __iter__(self) -> Iterator[list[int]]:
        micro_step = self.start * self.accumulate
        while True:
            first = (micro_step * self.ranks + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            micro_step += 1


def endless_loader(dataset: Dataset, sampler: StepSampler, workers: int) -> Iterator[dict]:
    """Batches in the sampler's order, prefetched by worker processes."""
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
    )
    return iter(loader)


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
