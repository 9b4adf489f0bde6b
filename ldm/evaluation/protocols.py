"""Evaluation protocols: which frames of which videos a distance compares, and how they are preprocessed.

Published FVDs of the same model differ by hundreds between protocols, so every score is stored with its protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ldm.evaluation.settings import ProtocolName
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError
from odvae.running.seeds import numpy_generator


@dataclass(frozen=True)
class ClipProtocol:
    """How clips are chosen. Each video gives one clip, with the length and size of the experiment's `data` section."""

    name: str
    source: str
    frames: int | None
    """Frames compared per clip; None: all of them."""
    stride: int
    """Every stride-th frame of a clip is compared. Generated clips start at their first frame."""
    start: Literal["first", "random"]
    """Where a real video's clip starts; a random start is a function of the seed and the video's index."""
    max_videos: int | None
    """Limit of the number of videos compared; None: that of the settings alone."""
    resize: Literal["squash", "crop"]
    """Resizing to the network's square input: ignoring the aspect ratio, or by the short side with a center crop."""
    ddof: int
    """The covariance is divided by n - ddof."""

    def frames_of(self, clip_frames: int) -> int:
        """Frames compared of a clip with this many frames."""
        return clip_frames if self.frames is None else self.frames

    def check(self, clip_frames: int) -> None:
        """Raise InputError for clips that are too short for this protocol."""
        needed = (self.frames_of(clip_frames) - 1) * self.stride + 1
        if clip_frames < needed:
            raise InputError(
                f"eval_ldm.protocol={self.name} compares {self.frames} frames at stride {self.stride}, which needs "
                f"clips of {needed} frames, found data.frames={clip_frames}"
            )

    def select(self, clips: np.ndarray) -> np.ndarray:
        """The frames of clips (..., t, h, w, 3) that are compared."""
        return clips[..., : self.frames_of(clips.shape[-4]) * self.stride : self.stride, :, :, :]

    def random_start(self, video_frames: int, data: DataSettings, seed: int, index: int) -> int:
        """A random first frame of the clip of the real video with this index."""
        return int(numpy_generator(seed, "reference", index).integers(0, video_frames - data.span + 1))

    def describe(self, data: DataSettings, seed: int) -> dict:
        """The part of a score's protocol that concerns clips and statistics, without the network and n."""
        rate = f"{data.fps:g} frames per second" if data.fps else "the frame rate of each video"
        return {
            "name": self.name,
            "source": self.source,
            "clip": f"{data.frames} frames {data.height}x{data.width}, stride {data.stride} at {rate}, "
            f"cover ({data.resize}, antialiased) and center crop",
            "frames": self.frames_of(data.frames),
            "stride": self.stride,
            "real_start": self.start,
            "generated_start": "first",
            "clips_per_video": 1,
            "resize": self.resize,
            "ddof": self.ddof,
            "seed": seed if self.start == "random" else None,
        }


STYLEGAN_V = "StyleGAN-V (Skorokhodov et al. 2022, arXiv 2112.14683) and its code"
PROTOCOLS: dict[ProtocolName, ClipProtocol] = {
    "clip": ClipProtocol("clip", "this project: whole clips", None, 1, "first", None, "squash", 1),
    "stylegan-v-16f": ClipProtocol("stylegan-v-16f", STYLEGAN_V, 16, 1, "random", 2048, "squash", 0),
    "stylegan-v-128f": ClipProtocol("stylegan-v-128f", STYLEGAN_V, 128, 1, "random", 2048, "squash", 0),
    "stylegan-v-128f-8": ClipProtocol("stylegan-v-128f-8", STYLEGAN_V, 16, 8, "random", 2048, "squash", 0),
    "videogpt-16f": ClipProtocol(
        "videogpt-16f", "VideoGPT (Yan et al. 2021, arXiv 2104.10157) and its code", 16, 1, "random", 2048, "crop", 1
    ),
}
