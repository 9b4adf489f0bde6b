"""Pictures a person looks at: frame strips of several videos under one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from odvae.running.files import atomic_file


def frame_grid(videos: Sequence[np.ndarray], columns: int = 9, gap: int = 2, enlarge_to: int = 64) -> np.ndarray:
    """One row of evenly spaced frames a video: uint8 (t, h, w, 3) each -> one uint8 picture (H, W, 3).

    Small frames are enlarged by a whole factor (no smoothing: what the model made is what is seen).
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
    """Write uint8 (h, w, 3) frames as an endless GIF, whole or not at all."""
    pictures = (Image.fromarray(frame) for frame in frames)
    first = next(pictures)
    with atomic_file(path) as file:
        first.save(file, "gif", save_all=True, append_images=pictures, duration=round(1000 / fps), loop=0)


def save_image(path: str | Path, picture: np.ndarray) -> None:
    """Write a uint8 (h, w, 3) picture as PNG, whole or not at all."""
    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, format="png")
