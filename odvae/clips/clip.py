"""A clip of a video: how many frames there are, which are taken, how they are brought to size.

A clip is `frames` frames of a video, from frame number `start` on, each `stride`-th; with `fps` set the video is first
brought to that rate, so that numbers count frames of the new rate. An image is a video of one frame.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from odvae.clips.settings import ClipSettings, Resize
from odvae.running.errors import InputError
from odvae.shards.tars import Sample
from odvae.video.files import VIDEO_EXTENSIONS, decode, examine, read_frames, read_frames_at
from odvae.video.images import IMAGE_EXTENSIONS, decode_image

CENTER = (0.5, 0.5)
DEFAULT_FPS = 8.0  # rate at which clips are played where that of their video is unknown


def video_member(sample: Sample) -> str:
    """The extension of the sample's video or image. Raises InputError where it has none."""
    for extension in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS):
        if extension in sample.members:
            return extension
    raise InputError(f"{sample.name} has no video, only {', '.join(sorted(sample.members))}")


def frame_count(sample: Sample, fps: float | None) -> int:
    """Frames of a sample's video, at the rate `fps` where it is given.

    From the sample's .json (`frames`, `seconds`); a video without these entries is decoded and counted.
    """
    known = known_frame_count(sample, fps)
    if known is not None:
        return known
    facts = examine(sample.open(video_member(sample)), sample.name)
    return int(facts.seconds * fps + 1e-6) if fps else facts.frames


def known_frame_count(sample: Sample, fps: float | None) -> int | None:
    """`frame_count` where nothing has to be decoded for it; else None."""
    if video_member(sample) in IMAGE_EXTENSIONS:
        return 1
    about = sample.read_json()
    return frames_from_metadata(about, fps) if isinstance(about.get("frames"), int) else None


def frames_from_metadata(about: dict, fps: float | None) -> int | None:
    """Frames of a video by its .json, at the rate `fps` where it is given; None where the .json does not say."""
    length = about.get("seconds" if fps else "frames")
    if not isinstance(length, int | float):
        return None
    return int(length * fps + 1e-6) if fps else int(length)


def clip_rate(sample: Sample, settings: ClipSettings) -> float:
    """Frames per second of a clip: the settings' `fps`, or that in the sample's .json, divided by the stride."""
    fps = settings.fps or sample.read_json().get("fps")
    return fps / settings.stride if fps else DEFAULT_FPS


def frame_size(sample: Sample) -> tuple[int, int]:
    """Height and width of a sample's video or image, upright: from its .json, else from the file itself."""
    about, member = sample.read_json(), video_member(sample)
    if isinstance(about.get("height"), int) and isinstance(about.get("width"), int):
        return about["height"], about["width"]
    if member in IMAGE_EXTENSIONS:
        return decode_image(sample.read(member), sample.name).shape[:2]
    return next(decode(sample.open(member), sample.name)).shape[:2]


def load_clip(
    sample: Sample, settings: ClipSettings, start: int = 0, crop: tuple[float, float] = CENTER, flip: bool = False
) -> Tensor:
    """One clip of a video as uint8 (frames, height, width, 3), from its frame number `start` on.

    `crop` says where the kept part lies in what is too long, from (0, 0), top and left, to (1, 1). Frames are brought
    to size one by one, so that a large video needs no more memory than a small one. Raises VideoError (an InputError)
    where the video is unreadable or too short.
    """
    clip = torch.empty(settings.shape, dtype=torch.uint8)
    for i, frame in enumerate(clip_frames(sample, settings, start)):
        clip[i] = fit_frames(frame[None], settings.height, settings.width, settings.resize, crop)[0]
    return clip.flip(2) if flip else clip


def clip_frames(sample: Sample, settings: ClipSettings, start: int) -> Iterator[np.ndarray]:
    """A clip's frames as the file has them, uint8 (h, w, 3)."""
    member = video_member(sample)
    if member in IMAGE_EXTENSIONS:
        if start or settings.frames > 1:
            raise InputError(f"{sample.name} is an image, a clip of {settings.frames} frames was asked for")
        return iter([decode_image(sample.read(member), sample.name)])
    about, file = sample.read_json(), sample.open(member)
    if settings.fps is None:
        keyframes = [tuple(keyframe) for keyframe in about.get("keyframes", [])]
        return read_frames(file, sample.name, start, settings.frames, settings.stride, keyframes)
    times = [(start + i * settings.stride) / settings.fps for i in range(settings.frames)]
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
    top, left = (round((long - short) * share) for long, short, share in zip(size, (height, width), crop, strict=True))
    return F.crop(video, top, left, height, width).permute(0, 2, 3, 1).contiguous()
