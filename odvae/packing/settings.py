"""Settings of packing, with the filters that videos must pass."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from odvae.cluster.settings import PartSettings, usable_cores

# Settings that do not determine what is in the shards, so they may change when a packing goes on.
_MAY_CHANGE = {
    "workers", "seconds_per_file", "memory_gib", "part", "finish", "engine",
    "downloads", "download_seconds", "download_retries", "largest_mib",
}  # fmt: skip


class PackingSettings(PartSettings):
    samples_per_shard: int = Field(500, ge=1)
    """Videos per tar."""
    workers: int = Field(default_factory=usable_cores, ge=0)
    """Decoding processes; 0 decodes in the main process, without time and memory limits."""
    captions: str | None = None
    """Caption table (.csv, .tsv, .json, .jsonl, .parquet, .arrow), the only one that is read; null: every table in the
    source folder that has rows for its videos, otherwise the .txt, .caption or .json file next to each video."""
    file_column: str | None = None
    """Column of the tables with the file name; null: the usual ones (file_name, path, video, videoid, ...)."""
    text_column: str | None = None
    """Column of the tables with the caption; null: the usual ones (text, caption, prompt, ...)."""
    labels: Literal["table", "folders"] = "table"
    """Classes are a column of the table, or the names of the videos' folders."""
    groups: str | None = None
    """A regular expression. Files in whose paths it finds the same text are a group, which is in the training or in the
    held-out split as a whole: `groups='v_\\w+_g\\d+'` for UCF101, where such clips are cut from one video."""
    min_frames: int = Field(1, ge=1)
    """Videos with fewer frames are left out. Images are filtered by size and aspect only."""
    min_seconds: float = Field(0.0, ge=0)
    """Shorter videos are left out."""
    max_seconds: float | None = Field(None, gt=0)
    """Longer videos are left out; null: no limit."""
    min_side: int = Field(1, ge=1)
    """Videos whose shorter side has fewer pixels are left out."""
    min_fps: float = Field(0.0, ge=0)
    """Videos with a lower frame rate are left out."""
    max_fps: float | None = Field(None, gt=0)
    """Videos with a higher frame rate are left out; null: no limit."""
    min_aspect: float = Field(0.0, ge=0)
    """Videos narrower than this (width over height) are left out."""
    max_aspect: float | None = Field(None, gt=0)
    """Videos wider than this (width over height) are left out; null: no limit."""
    cut_scenes: bool = False
    """Cut videos at scene changes; each scene is re-encoded and becomes a sample. Needs PySceneDetect."""
    seconds_per_file: float = Field(300.0, gt=0)
    """A file that takes longer to decode is left out."""
    memory_gib: float = Field(4.0, gt=0)
    """A file that needs more memory to decode is left out."""
    part: str | None = None
    """i/n: pack one of n shares, on any machine and in any order; then the same command with finish=true."""
    finish: bool = False
    """Finish a folder that was packed in parts: its index and report; copies in several parts are used once."""
    engine: Literal["processes", "ray"] = "processes"
    """Where files are decoded: processes of this machine, or a Ray cluster (extra `ray`), which also writes shards."""
    downloads: int = Field(16, ge=1)
    """Files that are downloaded at once, where SRC is a table of URLs."""
    download_seconds: float = Field(30.0, gt=0)
    """A server that sends nothing for so long is asked again."""
    download_retries: int = Field(3, ge=0)
    """How often a server is asked again that fails or ends too early. Missing files (404) are not asked for again."""
    largest_mib: float = Field(4096.0, gt=0)
    """A file of a URL that is larger is left out."""

    @field_validator("groups")
    @classmethod
    def _is_expression(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"{text!r} is no regular expression: {error}") from None
        return text

    def decisive(self) -> dict[str, Any]:
        """The settings that determine what is in the shards."""
        return self.model_dump(mode="json", exclude=self._not_decisive)

    def decisive_json(self) -> str:
        return self.model_dump_json(exclude=self._not_decisive)

    @property
    def _not_decisive(self) -> set[str]:
        # Without groups, so that folders packed before there were any are recognized.
        return _MAY_CHANGE | ({"groups"} if self.groups is None else set())

    def group_of(self, name: str) -> str:
        """The group of the file with this path in the source; empty if it belongs to none."""
        found = re.search(self.groups, name) if self.groups else None
        return found[0] if found else ""

    def why_not(self, about: dict) -> tuple[str, str] | None:
        """The setting whose filter a video does not pass, and the details; None if it passes all filters."""
        height, width = about["height"], about["width"]
        aspect = width / height
        found = [
            (min(height, width), "pixels on its shorter side", "min_side", self.min_side, None),
            (round(aspect, 3), "aspect ratio", "aspect", self.min_aspect, self.max_aspect),
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
