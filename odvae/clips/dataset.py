"""Training clips by sample number: video, first frame, crop and flip are functions of (seed, sample number).

So the clips do not depend on the number of ranks and workers, and a resumed run continues with the next clip.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from odvae.clips.clip import CENTER, frame_count, load_clip
from odvae.clips.sample_order import SampleOrder
from odvae.clips.settings import DataSettings
from odvae.running.errors import UnfitError
from odvae.running.seeds import derive_seed, numpy_generator
from odvae.shards.samples import Sample


class ClipDataset:
    """Infinite dataset: sample number n -> {"video": uint8 (t, h, w, 3), "number": n}."""

    def __init__(
        self,
        samples: Sequence[Sample],
        data: DataSettings,
        seed: int,
        failed: dict[str, str] | None = None,
        order: SampleOrder = SampleOrder(),  # noqa: B008 - frozen
    ) -> None:
        self.samples, self.data, self.seed, self.order = samples, data, seed, order
        self.failed = {} if failed is None else failed  # by those who load: name of the video -> why

    def __getitem__(self, number: int) -> dict:
        return {"video": self.load(number, attempt=0), "number": number}

    def source(self, number: int, attempt: int) -> Sample:
        """The video of a sample; attempts above 0 give replacements for a video that cannot be decoded."""
        if attempt == 0:
            return self.samples[self.order.index(number, len(self.samples), self.seed)]
        return self.samples[derive_seed(self.seed, "replacement", number, attempt) % len(self.samples)]

    def load(self, number: int, attempt: int) -> Tensor:
        """The clip of a sample, uint8 (t, h, w, 3)."""
        return self.clip_of(self.source(number, attempt), number)

    def clip_of(self, sample: Sample, number: int) -> Tensor:
        """The clip of a sample, taken from the given video. Raises UnfitError if the video is too short."""
        data = self.data
        rng = numpy_generator(self.seed, "clip", number)
        last_start = frame_count(sample, data.fps) - data.span
        if last_start < 0:
            raise UnfitError(f"{sample.name}: is shorter than the {data.span} frames a clip spans")
        anywhere = int(rng.integers(0, last_start + 1))
        start = {"random": anywhere, "first": 0, "middle": last_start // 2}[data.start]
        crop = (float(rng.random()), float(rng.random())) if data.crop == "random" else CENTER
        return load_clip(sample, data, start, crop, flip=derive_seed(self.seed, "flip", number) / 2**63 < data.flip)
