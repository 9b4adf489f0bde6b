"""Which clips are taken from which videos, and how they are read: the `data` section of an experiment.

Each part is what one job needs; `DataSettings` is all of them, so every function that takes a part takes it too.
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
    `*`, or "pipe:COMMAND". `shards` is then used for validation and statistics. Order and resume are approximate."""


class ClipSettings(Settings):
    """The shape of a clip, and how it is cut from a video."""

    frames: int = Field(17, ge=1)
    """Frames a clip. A VAE takes a multiple of its temporal compression ratio, plus one (OD-VAE: 4k+1): the first frame
    is compressed alone, the others in groups."""
    height: int = Field(48, ge=1)
    """Clip height in pixels, a multiple of the VAE's spatial compression ratio (OD-VAE: 8)."""
    width: int = Field(48, ge=1)
    """Clip width in pixels, a multiple as the height."""
    stride: int = Field(1, ge=1)
    """Every stride-th frame of the video is taken."""
    fps: float | None = Field(None, gt=0)
    """Frames per second to which videos are brought first, by the frame shown at each moment; null: all frames."""
    resize: Resize = "bicubic"
    """Filter that brings a video to the clip's size, antialiased."""
    hdr: Literal["tone_map", "leave_out"] = "tone_map"
    """What becomes of videos of high dynamic range (PQ, HLG): their light is brought to standard range (BT.2390), or
    they are left out."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(t, h, w, 3) of a decoded clip."""
        return self.frames, self.height, self.width, 3

    @property
    def span(self) -> int:
        """Video frames from a clip's first to its last, both counted."""
        return (self.frames - 1) * self.stride + 1


class AugmentationSettings(Settings):
    """What is random about a training clip."""

    start: Literal["random", "first", "middle"] = "random"
    """Where in its video a training clip begins."""
    crop: Literal["center", "random"] = "center"
    """What is kept of the side that is too long, in training."""
    flip: float = Field(0.0, ge=0, le=1)
    """Share of the VAE's training clips that are mirrored, left to right. Mirrored latents: `encode.flip`."""


class SplitSettings(Settings):
    """Which videos are kept from training."""

    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of the videos kept from all training, chosen by the hash of their key."""


class LoadingSettings(Settings):
    """How clips are decoded, and how much may go wrong."""

    workers: Annotated[int, MayChange] = Field(1, ge=0)
    """Processes that decode clips, a rank; 0 decodes in the training process, where nothing guards it."""
    decode_seconds: Annotated[float, MayChange] = Field(60.0, gt=0)
    """A video that takes a worker longer than this for one clip is left out."""
    decode_gib: Annotated[float, MayChange] = Field(4.0, gt=0)
    """A video that needs more memory than this to decode is left out."""
    stream_seconds: Annotated[float, MayChange] = Field(12.0, gt=0)
    """A streamed shard that sends no byte for this long is left for a later pass over the shards; where no new video
    for training comes for three times as long, the run ends. Set it higher for a slow source."""
    failures_allowed: Annotated[float, MayChange] = Field(0.05, ge=0, le=1)
    """The run ends when more than this share of the videos could not be decoded; until then they are left out."""


class DataSettings(LoadingSettings, SplitSettings, AugmentationSettings, ClipSettings, SourceSettings):
    """All of an experiment's `data` section. (pydantic lists the fields of the last class first.)"""
