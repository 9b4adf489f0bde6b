"""Settings of encoding: sizes of clips, how many of a video, how they are stored."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from odvae.clips.settings import DataSettings
from odvae.frame_counts import check_clip_size
from odvae.running.errors import InputError
from odvae.running.settings import MayChange, Settings


class BucketSettings(Settings):
    """One size of clips: videos and images of different shapes go where they fit best."""

    frames: int = Field(ge=1)
    """Frames a clip, as many as the VAE takes; a bucket of 1 frame is for images, and for videos too short for the
    others."""
    height: int = Field(ge=1)
    """Clip height in pixels, a multiple of the VAE's spatial compression ratio."""
    width: int = Field(ge=1)
    """Clip width in pixels, a multiple as the height."""

    @property
    def name(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def of_clips(cls, data: DataSettings) -> BucketSettings:
        """The size of the experiment's own clips."""
        return cls(frames=data.frames, height=data.height, width=data.width)

    @classmethod
    def from_name(cls, name: str) -> BucketSettings:
        frames, height, width = map(int, name.split("x"))
        return cls(frames=frames, height=height, width=width)

    def clip_settings(self, data: DataSettings) -> DataSettings:
        """`data` with this bucket's size."""
        return data.model_copy(update={"frames": self.frames, "height": self.height, "width": self.width})


class EncodeSettings(Settings):
    renamed_section: ClassVar = "latents"
    renamed_keys: ClassVar = {"stored": "posterior"}

    buckets: tuple[BucketSettings, ...] = ()
    """Sizes of clips; each video goes where it fits best, images to a bucket of 1 frame. Empty: one bucket, of data's
    frames, height and width."""
    clips_per_video: int = Field(1, ge=1)
    """Clips encoded of each video, their first frames spread evenly over it."""
    flip: bool = False
    """Whether each clip's mirror image is encoded too, as an entry of its own."""
    batch_size: Annotated[int, MayChange] = Field(16, ge=1)
    """Clips encoded at a time."""
    stream_frames: int = Field(65, ge=5)
    """Longer clips are decoded and encoded in pieces of this many frames, one clip at a time, in constant memory."""
    dtype: Literal["bf16", "fp16"] = "bf16"
    """How means, standard deviations and text embeddings are stored."""
    posterior: Literal["moments", "mean"] = "moments"
    """Both moments of a clip's posterior, of which training draws anew each time; or the mean alone, half the size."""

    @field_validator("buckets")
    @classmethod
    def _no_bucket_is_there_twice(cls, buckets: tuple[BucketSettings, ...]) -> tuple[BucketSettings, ...]:
        names = [bucket.name for bucket in buckets]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"there twice: {', '.join(repeated)}")
        return buckets

    def check_sizes(self, data: DataSettings, ratios: tuple[int, int]) -> None:
        """Raise InputError for clips that a VAE with these (temporal, spatial) compression ratios does not take."""
        for bucket in self.buckets_for(data):
            section = f"encode.buckets: {bucket.name}" if self.buckets else "data"
            check_clip_size(bucket.frames, bucket.height, bucket.width, ratios, section)

    def buckets_for(self, data: DataSettings) -> tuple[BucketSettings, ...]:
        """The buckets, or the only one."""
        return self.buckets or (BucketSettings.of_clips(data),)
