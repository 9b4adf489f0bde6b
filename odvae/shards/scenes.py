"""Cutting of videos at scene changes with PySceneDetect (an optional dependency)."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from odvae.running.errors import InputError
from odvae.video.video_io import decode, encode_video

MISSING = "cutting at scene changes needs PySceneDetect: pip install 'odvae[scenes]'"


def check_scene_detection() -> None:
    """Raise InputError if PySceneDetect is not installed."""
    try:
        import scenedetect  # noqa: F401 - optional
    except ImportError:
        raise InputError(MISSING) from None


def find_scenes(video: Path) -> list[tuple[int, int]]:
    """(first frame, frame after the last) of each scene of a video, found by content changes; at least one."""
    from scenedetect import ContentDetector, SceneManager, open_video

    stream, manager = open_video(str(video), backend="pyav"), SceneManager()
    manager.add_detector(ContentDetector())
    manager.detect_scenes(stream, show_progress=False)
    return [(start.frame_num, end.frame_num) for start, end in manager.get_scene_list(start_in_scene=True)]


def cut_scene(video: Path, name: str, scene: tuple[int, int], fps: float) -> bytes:
    """A scene as a separate video, H.264 at a visually lossless quality; an odd row or column is dropped."""
    frames = itertools.islice(decode(video, name), *scene)
    first = next(frames)
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2
    even = (np.ascontiguousarray(frame[:height, :width]) for frame in itertools.chain([first], frames))
    return encode_video(even, height, width, fps)
