"""Videos of the same captions, generated at each rate: a row a caption, a column a point, as one moving picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from odvae.video.frame_grid import save_gif
from odvae.video.video_io import decode

GAP = 2  # pixels between videos
HEADING = 14  # pixels above the columns


def write_side_by_side(rows: Sequence[Sequence[Path]], headings: Sequence[str], path: Path, fps: float) -> None:
    """Write a GIF of a grid of videos of the same size and length, with a heading above each column.

    Raises ValueError for rows of other lengths than there are headings.
    """
    clips = [[np.stack(list(decode(file, str(file)))) for file in row] for row in rows]
    columns = [np.concatenate([_framed(clip) for clip in column], axis=1) for column in zip(*clips, strict=True)]
    video = np.concatenate(columns, axis=2)  # (t, h, w, 3)
    top = _headings(headings, [column.shape[2] for column in columns])
    save_gif(path, (np.concatenate([top, frame]) for frame in video), fps)


def _framed(clip: np.ndarray) -> np.ndarray:
    return np.pad(clip, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


def _headings(words: Sequence[str], widths: Sequence[int]) -> np.ndarray:
    """Words in black on white, each at the left of its column: uint8 (HEADING, w, 3)."""
    image = Image.new("RGB", (sum(widths), HEADING), "white")
    draw, left = ImageDraw.Draw(image), 0
    for word, width in zip(words, widths, strict=True):
        draw.text((left + GAP, 1), word, fill="black")
        left += width
    return np.asarray(image)
