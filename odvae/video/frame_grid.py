"""Grids of video frames as images, and writing of PNG and GIF files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from odvae.running.files import atomic_file


def frame_grid(videos: Sequence[np.ndarray], columns: int = 9, gap: int = 2, enlarge_to: int = 64) -> np.ndarray:
    """A grid with one row of evenly spaced frames per video: uint8 (t, h, w, 3) each -> one uint8 image (H, W, 3).

    Frames smaller than `enlarge_to` are enlarged by an integer factor without smoothing, so that the model's pixels are
    visible.
    """
    rows = []
    for frames in videos:
        chosen = frames[np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)]
        factor = max(1, round(enlarge_to / chosen.shape[1]))
        chosen = chosen.repeat(factor, axis=1).repeat(factor, axis=2)
        padded = np.pad(chosen, ((0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(padded), axis=1))
    return np.concatenate(rows, axis=0)


def save_gif(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write uint8 (h, w, 3) frames as an endlessly repeated GIF, atomically."""
    images = (Image.fromarray(frame) for frame in frames)
    first = next(images)
    with atomic_file(path) as file:
        first.save(file, "gif", save_all=True, append_images=images, duration=round(1000 / fps), loop=0)


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Write a uint8 (h, w, 3) image as PNG, atomically."""
    with atomic_file(path) as file:
        Image.fromarray(image).save(file, format="png")
