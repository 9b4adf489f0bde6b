"""The settings of packing, and which videos they let pass."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from odvae.running.settings import Settings


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PackingSettings(Settings):
    samples_per_shard: int = Field(500, ge=1)
    """Videos a tar."""
    workers: int = Field(default_factory=_cores, ge=0)
    """Processes that decode; 0 decodes in this one, where nothing guards it."""
    captions: str | None = None
    """Caption table (.csv, .tsv, .json, .jsonl, .parquet, .arrow), which alone is read then; null: every table in the
    source folder that has rows for its videos, and else the .txt, .caption or .json beside each video."""
    file_column: str | None = None
    """Column of the tables that names the file; null: the usual ones (file_name, path, video, videoid, ...)."""
    text_column: str | None = None
    """Column of the tables that holds the caption; null: the usual ones (text, caption, prompt, ...)."""
    labels: Literal["table", "folders"] = "table"
    """Where classes come from: a column of the table, or the name of the folder that holds the video."""
    min_frames: int = Field(1, ge=1)
    """Videos with fewer frames are left out. Images have one frame, and only size and aspect are asked of them."""
    min_seconds: float = Field(0.0, ge=0)
    """Shorter videos are left out."""
    max_seconds: float | None = Field(None, gt=0)
    """Longer videos are left out; null: none are."""
    min_side: int = Field(1, ge=1)
    """Videos whose shorter side has fewer pixels are left out."""
    min_fps: float = Field(0.0, ge=0)
    """Videos of a lower rate are left out."""
    max_fps: float | None = Field(None, gt=0)
    """Videos of a higher rate are left out; null: none are."""
    min_aspect: float = Field(0.0, ge=0)
    """Videos narrower than this (width over height) are left out."""
    max_aspect: float | None = Field(None, gt=0)
    """Videos wider than this (width over height) are left out; null: none are."""
    cut_scenes: bool = False
    """Cut videos where the scene changes; each scene becomes a sample, encoded anew. Needs PySceneDetect."""
    seconds_per_file: float = Field(300.0, gt=0)
    """A file that takes longer to decode is left out."""
    memory_gib: float = Field(4.0, gt=0)
    """A file that needs more memory to decode is left out."""

    def why_not(self, about: dict) -> tuple[str, str] | None:
        """Which filter a video does not pass (its setting), and how; None where it passes all."""
        height, width = about["height"], about["width"]
        aspect = width / height
        found = [
            (min(height, width), "pixels on its shorter side", "min_side", self.min_side, None),
            (round(aspect, 3), "wide for its height", "aspect", self.min_aspect, self.max_aspect),
        ]
        if about["fps"]:
            found += [
                (about["frames"], "frames", "min_frames", self.min_frames, None),
                (round(about["seconds"], 3), "seconds", "seconds", self.min_seconds, self.max_seconds),
                (round(about["fps"], 3), "frames per second", "fps", self.min_fps, self.max_fps),
            ]
        for value, what, name, low, high in found:
            least = name if name.startswith("min") else f"min_{name}"
            if value < low:
                return least, f"{value} {what}, {least} is {low}"
            if high is not None and value > high:
                return f"max_{name}", f"{value} {what}, max_{name} is {high}"
        return None
