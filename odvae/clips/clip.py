"""Reading of clips: number of frames of a video, which frames a clip has, resizing and cropping.

A clip has `frames` frames of a video, every `stride`-th from frame number `start` on. With `fps` set, the video is
first resampled to that rate, and frame numbers refer to the new rate. An image is a video with one frame.
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
from odvae.shards.facts import examine_sample, known_facts
from odvae.shards.samples import Sample
from odvae.video.decoding import decoding
from odvae.video.extensions import IMAGE_EXTENSIONS
from odvae.video.images import decode_image
from odvae.video.video_io import VideoFacts, read_frames, read_frames_at

CENTER = (0.5, 0.5)
DEFAULT_FPS = 8.0  # rate at which clips are played if the rate of their video is unknown


def frame_count(sample: Sample, fps: float | None) -> int:
    """Number of frames of a sample's video, after resampling to `fps` if given.

    Decodes the video if no facts are known. Raises VideoError if it is unreadable.
    """
    with decoding(sample.name):
        return frames_at_rate(known_facts(sample) or examine_sample(sample), fps)


def frames_at_rate(facts: VideoFacts, fps: float | None) -> int:
    """Number of frames of a video, after resampling to `fps` if given. An image has one frame at any rate."""
    return int(facts.seconds * fps + 1e-6) if fps and facts.seconds else facts.frames


def clip_rate(sample: Sample, settings: ClipSettings) -> float:
    """Frames per second of a clip: the settings' `fps`, or the rate of its video, divided by the stride."""
    facts = known_facts(sample)
    fps = settings.fps or (facts.fps if facts is not None else None)  # an image's is 0
    return fps / settings.stride if fps else DEFAULT_FPS


def frame_size(sample: Sample) -> tuple[int, int]:
    """Height and width of a sample's video or image as displayed, from its known facts or from the file."""
    with decoding(sample.name):
        facts = known_facts(sample) or examine_sample(sample)
        return facts.height, facts.width


def load_clip(
    sample: Sample, settings: ClipSettings, start: int = 0, crop: tuple[float, float] = CENTER, flip: bool = False
) -> Tensor:
    """One clip of a video as uint8 (frames, height, width, 3), from its frame number `start` on.

    `crop` is the position of the crop, from (0, 0), top left, to (1, 1), bottom right. Frames are resized one by one,
    so that memory does not depend on the video's size. Raises VideoError (an InputError) if the video is unreadable or
    too short.
    """
    with decoding(sample.name):
        clip = torch.empty(settings.shape, dtype=torch.uint8)
        for i, frame in enumerate(clip_frames(sample, settings, start)):
            clip[i] = fit_frames(frame[None], settings.height, settings.width, settings.resize, crop)[0]
        return clip.flip(2) if flip else clip


def clip_frames(sample: Sample, settings: ClipSettings, start: int) -> Iterator[np.ndarray]:
    """The frames of a clip in the file's size, uint8 (h, w, 3)."""
    member = sample.video_member
    if member in IMAGE_EXTENSIONS:
        if start or settings.frames > 1:
            raise InputError(f"{sample.name} is an image, but a clip of {settings.frames} frames was requested")
        return iter([decode_image(sample.read(member), sample.name)])
    facts, file = known_facts(sample), sample.open(member)
    if settings.fps is None:
        keyframes = facts.keyframes if facts else []
        return read_frames(file, sample.name, start, settings.frames, settings.stride, keyframes, settings.hdr)
    times = [(start + i * settings.stride) / settings.fps for i in range(settings.frames)]
    tail = 1 / facts.fps if facts and facts.fps else None
    return read_frames_at(file, sample.name, times, tail, facts, settings.hdr)


def fit_frames(
    frames: np.ndarray, height: int, width: int, resize: Resize = "bicubic", crop: tuple[float, float] = CENTER
) -> Tensor:
    """uint8 (t, h, w, 3) -> uint8 (t, height, width, 3): resize to cover the target, antialiased, then crop."""
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
