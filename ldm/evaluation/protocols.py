"""Which frames of which videos a distance compares, as data: the choices that make two FVDs comparable or not.

Published numbers for the same model differ by hundreds where these differ, so the protocol is stored beside each score.
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
    """One way to choose clips. A clip is what the experiment's `data` section takes from a video, one of each video."""

    name: str
    source: str
    frames: int | None
    """Frames compared; None: all of a clip's."""
    stride: int
    """Every stride-th frame of a clip. Generated clips are taken from their first frame on."""
    start: Literal["first", "random"]
    """Where in a real video its clip begins; a random place is a function of the seed and the video's number."""
    most: int | None
    """Videos compared, at most; None: as many as the settings say."""
    resize: Literal["squash", "crop"]
    """To the network's square: without keeping the aspect, or the short side first and then the center."""
    ddof: int
    """The covariance is divided by n - ddof."""

    def frames_of(self, clip_frames: int) -> int:
        return clip_frames if self.frames is None else self.frames

    def check(self, clip_frames: int) -> None:
        """Raise InputError where clips are too short for this protocol."""
        needed = (self.frames_of(clip_frames) - 1) * self.stride + 1
        if clip_frames < needed:
            raise InputError(
                f"eval_ldm.protocol={self.name} compares {self.frames} frames at stride {self.stride}, which need "
                f"clips of {needed}; the experiment's have data.frames={clip_frames}"
            )

    def select(self, clips: np.ndarray) -> np.ndarray:
        """The frames compared of clips (..., t, h, w, 3)."""
        return clips[..., : self.frames_of(clips.shape[-4]) * self.stride : self.stride, :, :, :]

    def random_start(self, video_frames: int, data: DataSettings, seed: int, number: int) -> int:
        """The first frame of the clip of real video number `number`, anywhere in it."""
        return int(numpy_generator(seed, "reference", number).integers(0, video_frames - data.span + 1))

    def describe(self, data: DataSettings, seed: int) -> dict:
        """What is stored beside a score, but for the network and the counts."""
        return {
            "name": self.name,
            "source": self.source,
            "clip": f"{data.frames} frames {data.height}x{data.width}, stride {data.stride} at "
            f"{data.fps or 'the own'} frames a second, cover ({data.resize}, antialiased) and center crop",
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
