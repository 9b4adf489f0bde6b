"""Cutting of videos at scene changes with PySceneDetect (an optional dependency)."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from odvae.running.commands import install_extra
from odvae.running.errors import InputError
from odvae.video.video_io import decode, encode_video

# Scenes are looked for in frames about this large: details do not matter, and noise does not either.
_LONGEST_SIDE = 256

MISSING = f"cutting at scene changes needs PySceneDetect: {install_extra('scenes')}"


def check_scene_detection() -> None:
    """Raise InputError if PySceneDetect is not installed."""
    try:
        import scenedetect  # noqa: F401 - optional
    except ImportError:
        raise InputError(MISSING) from None


def find_scenes(video: Path, name: str, fps: float) -> list[tuple[int, int]]:
    """(first frame, frame after the last) of each scene of a video, found by content changes; at least one.

    Frames are those of `decode`, which PySceneDetect's own readers number by time and take from any stream.
    """
    from scenedetect import ContentDetector, FrameTimecode

    detector, cuts, count = ContentDetector(), [], 0
    for frame in decode(video, name):
        step = max(1, max(frame.shape) // _LONGEST_SIDE)
        small = np.ascontiguousarray(frame[::step, ::step, ::-1])  # OpenCV's order of channels
        cuts += detector.process_frame(FrameTimecode(count, fps), small)
        count += 1
    cuts += detector.post_process(FrameTimecode(count - 1, fps))
    return list(itertools.pairwise([0, *(cut.frame_num for cut in cuts), count]))


def cut_scene(video: Path, name: str, scene: tuple[int, int], fps: float) -> bytes:
    """A scene as a separate video, H.264 at a visually lossless quality; an odd row or column is dropped."""
    frames = itertools.islice(decode(video, name), *scene)
    first = next(frames)
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2
    even = (np.ascontiguousarray(frame[:height, :width]) for frame in itertools.chain([first], frames))
    return encode_video(even, height, width, fps)
