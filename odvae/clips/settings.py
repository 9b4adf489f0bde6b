"""Data settings: which videos and clips are used and how they are read (the `data` section of a config).

Each class has the settings of one task. `DataSettings` inherits from all of them, so it can be passed to every function
that needs one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from odvae.running.resume_check import MayChange
from odvae.running.settings import Settings

Resize = Literal["bicubic", "bilinear"]


class SourceSettings(Settings):
    """Where the videos are."""

    shards: str | None = None
    """Folder of video shards (KEY.mp4 KEY.txt KEY.json); null: `shards/` in the run folder."""
    stream: str | None = None
    """Shards that train the VAE in place of those in `shards`, streamed by webdataset: URLs with braces, files with
    `*`, or "pipe:COMMAND". `shards` is then used for validation and statistics. The order is not
    reproducible, and a resumed run sees other samples."""


class ClipSettings(Settings):
    """The shape of a clip, and how it is read from a video."""

    frames: int = Field(17, ge=1)
    """Frames per clip: a multiple of the VAE's temporal compression ratio plus one (at 4x: 4k+1), since the first
    frame is compressed alone and the others in groups."""
    height: int = Field(48, ge=1)
    """Clip height in pixels, a multiple of the VAE's spatial compression ratio (8 for OD-VAE)."""
    width: int = Field(48, ge=1)
    """Clip width in pixels, a multiple of the same ratio."""
    stride: int = Field(1, ge=1)
    """Every stride-th frame of the video is used."""
    fps: float | None = Field(None, gt=0)
    """Frame rate to which videos are resampled first (the frame shown at each time); null: all frames are used."""
    resize: Resize = "bicubic"
    """Interpolation for resizing, antialiased."""
    hdr: Literal["tone_map", "leave_out"] = "tone_map"
    """Videos of high dynamic range (PQ, HLG) are tone-mapped to standard range (BT.2390) or left out."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(t, h, w, 3) of a decoded clip."""
        return self.frames, self.height, self.width, 3

    @property
    def span(self) -> int:
        """Number of video frames from the first to the last frame of a clip, both included."""
        return (self.frames - 1) * self.stride + 1


class AugmentationSettings(Settings):
    """Random augmentation of training clips."""

    start: Literal["random", "first", "middle"] = "random"
    """Position of a training clip in its video."""
    crop: Literal["center", "random"] = "center"
    """Position of a training clip's crop along the longer side."""
    flip: float = Field(0.0, ge=0, le=1)
    """Share of the VAE's training clips that are mirrored horizontally. Mirrored latents: `encode.flip`."""


class SplitSettings(Settings):
    """Which videos are held out from training."""

    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of the videos that are never used for training, chosen by the hash of their key."""


class LoadingSettings(Settings):
    """Decoding processes, their limits, and the allowed share of failures."""

    workers: Annotated[int, MayChange] = Field(1, ge=0)
    """Decoding processes per rank; 0 decodes in the training process, without time and memory limits."""
    decode_seconds: Annotated[float, MayChange] = Field(60.0, gt=0)
    """A video that takes a worker longer than this for one clip is left out."""
    decode_gib: Annotated[float, MayChange] = Field(4.0, gt=0)
    """A video that needs more memory than this to decode is left out."""
    stream_seconds: Annotated[float, MayChange] = Field(10.0, gt=0)
    """Seconds without a byte after which a streamed shard is postponed to a later pass. If no new video for training
    arrives for three times as long, the run ends. Set it higher for a slow source."""
    failures_allowed: Annotated[float, MayChange] = Field(0.05, ge=0, le=1)
    """Videos that cannot be decoded are left out; the run ends if they are more than this share of all videos."""


class DataSettings(LoadingSettings, SplitSettings, AugmentationSettings, ClipSettings, SourceSettings):
    """The whole `data` section of a config. (pydantic lists the fields of the last class first.)"""
