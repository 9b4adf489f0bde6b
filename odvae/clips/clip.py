"""Clips of videos: how long, how large, at what rate; and the usable videos of a shard folder.

A clip is `frames` frames of a video, from frame number `start` on, each `stride`-th; with `fps` set the video is first
brought to that rate, so that numbers count frames of the new rate. An image is a video of one frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from odvae.running.errors import InputError
from odvae.running.seeds import derive_seed
from odvae.running.settings import Settings
from odvae.running.worker_pool import Failure, WorkerPool
from odvae.shards.tars import Sample, index_shards, list_shards, video_of
from odvae.video.files import VIDEO_EXTENSIONS, decode, examine, read_frames, read_frames_at
from odvae.video.images import IMAGE_EXTENSIONS, decode_image

Resize = Literal["bicubic", "bilinear"]
CENTER = (0.5, 0.5)


def check_frames(frames: int) -> int:
    """`frames`, which must be 4k+1; else InputError with the nearest numbers that are."""
    if frames % 4 != 1:
        raise InputError(f"frames must be 4k+1, found {frames}; nearest: {nearest_frame_counts(frames)}")
    return frames


def nearest_frame_counts(frames: int) -> str:
    below = max(1, (frames - 1) // 4 * 4 + 1)
    return f"{below} or {below + 4}"


# The type of a setting that counts a clip's frames.
FrameCount = Annotated[int, AfterValidator(check_frames)]


class DataSettings(Settings):
    shards: str | None = None
    """Folder of video shards (KEY.mp4 KEY.txt KEY.json); null: `shards/` in the run folder."""
    stream: str | None = None
    """Further shards to train the VAE on, streamed by webdataset in place of those in `shards`, which then serve
    validation: URLs with braces, or "pipe:COMMAND". Order and resume are approximate then."""
    frames: FrameCount = Field(17, ge=1)
    """Frames a clip, 4k+1: the first frame is compressed alone, the others four by four."""
    height: int = Field(48, ge=8, multiple_of=8)
    """Clip height in pixels, a multiple of 8."""
    width: int = Field(48, ge=8, multiple_of=8)
    """Clip width in pixels, a multiple of 8."""
    stride: int = Field(1, ge=1)
    """Every stride-th frame of the video is taken."""
    fps: float | None = Field(None, gt=0)
    """Frames per second to which videos are brought first, by the frame shown at each moment; null: all frames."""
    start: Literal["random", "first", "middle"] = "random"
    """Where in its video a training clip begins."""
    resize: Resize = "bicubic"
    """Filter that brings a video to the clip's size, antialiased."""
    crop: Literal["center", "random"] = "center"
    """What is kept of the side that is too long, in training."""
    flip: float = Field(0.0, ge=0, le=1)
    """Share of the training clips that are mirrored, left to right. Captions must not tell left from right then."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of the videos kept from all training, chosen by the hash of their key."""
    workers: int = Field(1, ge=0)
    """Processes that decode clips, a rank; 0 decodes in the training process, where nothing guards it."""
    decode_seconds: float = Field(60.0, gt=0)
    """A video that takes a worker longer than this for one clip is left out."""
    decode_gib: float = Field(4.0, gt=0)
    """A video that needs more memory than this to decode is left out."""
    failures_allowed: float = Field(0.05, ge=0, le=1)
    """The run ends when more than this share of the videos could not be decoded; until then they are left out."""

    @property
    def span(self) -> int:
        """Video frames from a clip's first to its last, both counted."""
        return (self.frames - 1) * self.stride + 1


def is_held_out(key: str, share: float) -> bool:
    """Whether a video belongs to the held-out split: a function of its key alone, the same in every stage.

    All scenes of a video are in one split.
    """
    return derive_seed("held out", video_of(key)) / 2**63 < share


def video_member(sample: Sample) -> str:
    """The extension of the sample's video or image. Raises InputError where it has none."""
    for extension in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS):
        if extension in sample.members:
            return extension
    raise InputError(f"{sample.name} has no video, only {', '.join(sorted(sample.members))}")


def frame_count(sample: Sample, data: DataSettings) -> int:
    """Frames of a sample's video, at the rate `data.fps` where it is set.

    From the sample's .json (`frames`, `seconds`); a video without these entries is decoded and counted.
    """
    told = _frames_from_metadata(sample, data)
    if told is not None:
        return told
    facts = examine(sample.open(video_member(sample)), sample.name)
    return frames_from_metadata({"frames": facts.frames, "seconds": facts.seconds}, data)


def _frames_from_metadata(sample: Sample, data: DataSettings) -> int | None:
    """What `frame_count` answers, where it need decode nothing for it."""
    if video_member(sample) in IMAGE_EXTENSIONS:
        return 1
    about = sample.read_json()
    return frames_from_metadata(about, data) if isinstance(about.get("frames"), int) else None


def frames_from_metadata(about: dict, data: DataSettings) -> int | None:
    """Frames of a video, at the rate `data.fps` where it is set, as its .json tells; None where it does not."""
    told = about.get("seconds" if data.fps else "frames")
    if not isinstance(told, int | float):
        return None
    return int(told * data.fps + 1e-6) if data.fps else int(told)


def frame_size(sample: Sample) -> tuple[int, int]:
    """Height and width of a sample's video or image, upright: from its .json, else from the file itself."""
    about, member = sample.read_json(), video_member(sample)
    if isinstance(about.get("height"), int) and isinstance(about.get("width"), int):
        return about["height"], about["width"]
    if member in IMAGE_EXTENSIONS:
        return decode_image(sample.read(member), sample.name).shape[:2]
    return next(decode(sample.open(member), sample.name)).shape[:2]


def load_clip(
    sample: Sample, data: DataSettings, start: int = 0, crop: tuple[float, float] = CENTER, flip: bool = False
) -> Tensor:
    """One clip of a video as uint8 (frames, height, width, 3), from its frame number `start` on.

    `crop` says where the kept part lies in what is too long, from (0, 0), top and left, to (1, 1). Frames are brought
    to size one by one, so that a large video needs no more memory than a small one. Raises VideoError (an InputError)
    where the video is unreadable or too short.
    """
    clip = torch.empty((data.frames, data.height, data.width, 3), dtype=torch.uint8)
    for i, frame in enumerate(clip_frames(sample, data, start)):
        clip[i] = fit_frames(frame[None], data.height, data.width, data.resize, crop)[0]
    return clip.flip(2) if flip else clip


def clip_frames(sample: Sample, data: DataSettings, start: int) -> Iterator[np.ndarray]:
    """A clip's frames as the file has them, uint8 (h, w, 3)."""
    member = video_member(sample)
    if member in IMAGE_EXTENSIONS:
        if start or data.frames > 1:
            raise InputError(f"{sample.name} is an image, a clip of {data.frames} frames was asked for")
        return iter([decode_image(sample.read(member), sample.name)])
    about, file = sample.read_json(), sample.open(member)
    if data.fps is None:
        keyframes = [tuple(keyframe) for keyframe in about.get("keyframes", [])]
        return read_frames(file, sample.name, start, data.frames, data.stride, keyframes)
    times = [(start + i * data.stride) / data.fps for i in range(data.frames)]
    return read_frames_at(file, sample.name, times, tail=1 / about["fps"] if about.get("fps") else None)


def fit_frames(
    frames: np.ndarray, height: int, width: int, resize: Resize = "bicubic", crop: tuple[float, float] = CENTER
) -> Tensor:
    """uint8 (t, h, w, 3) -> uint8 (t, height, width, 3): cover the target, antialiased, and crop what is too long."""
    video = torch.from_numpy(frames)
    _, h, w, _ = video.shape
    if (h, w) == (height, width):
        return video
    scale = max(height / h, width / w)
    size = [max(height, round(h * scale)), max(width, round(w * scale))]
    video = video.permute(0, 3, 1, 2)  # (t, 3, h, w)
    video = F.resize(video, size, interpolation=InterpolationMode(resize), antialias=True)
    top, left = (round((long - short) * place) for long, short, place in zip(size, (height, width), crop, strict=True))
    return F.crop(video, top, left, height, width).permute(0, 2, 3, 1).contiguous()


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
        for sample, frames in zip(samples, frame_counts(samples, data), strict=True):
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
        text = f"{len(self.train)} training and {len(self.held_out)} held-out videos"
        if self.left_out:
            text += f"; {len(self.left_out)} left out, unusable or shorter than {self.data.span} frames: " + ", ".join(
                self.left_out[:5]
            )
        return text


def frame_counts(samples: list[Sample], data: DataSettings) -> Iterable[int | Failure]:
    """Frames of each video; those whose .json does not tell are decoded in guarded workers."""

    def frames_from_metadata(sample: Sample) -> int | Failure | None:
        try:
            return _frames_from_metadata(sample, data)
        except InputError as error:
            return Failure(str(error))

    told = [frames_from_metadata(sample) for sample in samples]
    untold = [sample for sample, frames in zip(samples, told, strict=True) if frames is None]
    workers = data.workers if untold else 0
    with WorkerPool(lambda sample: frame_count(sample, data), workers, data.decode_seconds, data.decode_gib) as pool:
        decoded = pool.map(untold, ahead=4 * workers)
        for frames in told:
            yield next(decoded) if frames is None else frames
