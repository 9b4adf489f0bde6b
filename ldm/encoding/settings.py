"""Settings of encoding: clip sizes, clips per video, how latents are stored."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from odvae.architecture.frame_counts import check_clip_size
from odvae.clips.settings import DataSettings
from odvae.running.errors import InputError
from odvae.running.resume_check import MayChange
from odvae.running.settings import Precision, Settings

ClipStart = Literal["first", "middle", "random"]


class BucketSettings(Settings):
    """One clip size; each video goes to the longest bucket that it fills, of equally long ones to the one with the
    nearest aspect ratio."""

    frames: int = Field(ge=1)
    """Frames per clip, a count that the VAE takes; a bucket of 1 frame is for images, and for videos too short for the
    other buckets."""
    height: int = Field(ge=1)
    """Clip height in pixels, a multiple of the VAE's spatial compression ratio."""
    width: int = Field(ge=1)
    """Clip width in pixels, a multiple of the same ratio."""

    @property
    def name(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def of_clips(cls, data: DataSettings) -> BucketSettings:
        """The size of the `data` section's clips."""
        return cls(frames=data.frames, height=data.height, width=data.width)

    @classmethod
    def from_name(cls, name: str) -> BucketSettings:
        frames, height, width = map(int, name.split("x"))
        return cls(frames=frames, height=height, width=width)

    def clip_settings(self, data: DataSettings) -> DataSettings:
        """`data` with this bucket's size."""
        return data.model_copy(update={"frames": self.frames, "height": self.height, "width": self.width})


class EncodeSettings(Settings):
    renamed_section: ClassVar[str] = "latents"
    renamed_keys: ClassVar[dict[str, str]] = {"stored": "posterior"}

    buckets: tuple[BucketSettings, ...] = ()
    """Clip sizes. Each video goes to the longest bucket that it fills, of equally long ones to the one with the nearest
    aspect ratio; images, and videos too short for the others, to a bucket of 1 frame. Empty: one bucket with
    data.frames, data.height and data.width."""
    clips_per_video: int = Field(1, ge=1)
    """Clips encoded per video, spread over it."""
    start: ClipStart = "first"
    """Where a video's clips begin. first: at its first frame, further clips evenly up to its end. middle, random: the
    possible first frames are divided into clips_per_video equal ranges, and each clip begins in the middle of its own,
    or at a random frame of it (a function of the seed and the video's key), so that intros and fade-ins are avoided."""
    flip: bool = False
    """Whether each clip's mirror image is encoded too, as a separate entry; not of videos whose captions or class
    mention left, right or (counter)clockwise."""
    batch_size: Annotated[int, MayChange] = Field(16, ge=1)
    """Clips encoded at a time. Decoded clips in memory: at most four for each of data.workers, or, if that is more, a
    batch for each thread that computes (one on a GPU) and one in advance."""
    stream_frames: int = Field(65, ge=5)
    """Longer clips are decoded and encoded in pieces of this many frames, one clip at a time, in constant memory."""
    precision: Precision = "auto"
    """Precision in which the VAE encodes: autocast to bf16, or none (fp32); auto: bf16 on a GPU that supports it,
    otherwise fp32. Captions are always embedded in fp32, latent statistics summed in fp64."""
    dtype: Literal["bf16", "fp16"] = "bf16"
    """Data type in which means, standard deviations and text embeddings are stored."""
    posterior: Literal["moments", "mean"] = "moments"
    """What is stored of a clip's posterior: mean and standard deviation, so that each training step draws a new
    sample; or the mean alone, half the size."""

    @field_validator("buckets")
    @classmethod
    def _buckets_differ(cls, buckets: tuple[BucketSettings, ...]) -> tuple[BucketSettings, ...]:
        names = [bucket.name for bucket in buckets]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"given more than once: {', '.join(repeated)}")
        return buckets

    def check_sizes(self, data: DataSettings, ratios: tuple[int, int]) -> None:
        """Raise InputError for clips that a VAE with these (temporal, spatial) compression ratios does not take."""
        for bucket in self.buckets_for(data):
            section = f"encode.buckets: {bucket.name}" if self.buckets else "data"
            check_clip_size(bucket.frames, bucket.height, bucket.width, ratios, section)

    def buckets_for(self, data: DataSettings) -> tuple[BucketSettings, ...]:
        """The buckets; where none is given, the one of the `data` section."""
        return self.buckets or (BucketSettings.of_clips(data),)
