"""Settings of encoding: clip sizes, clips per video, how latents are stored."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from odvae.architecture.frame_counts import check_clip_size
from odvae.clips.settings import DataSettings
from odvae.cluster.settings import PartSettings
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


class RaySettings(Settings):
    """Processes on a Ray cluster, each with the VAE and its own data.workers decoding processes."""

    actors: int | None = Field(None, ge=1)
    """Processes; null: as many as the machines have room for, also when machines come and go."""
    cpus: float | None = Field(None, gt=0)
    """CPU cores that a process reserves; null: 1 + data.workers. A fraction lets several share a core."""
    gpus: float | None = Field(None, ge=0)
    """GPUs that a process reserves; a fraction lets several share one; null: 1 where the cluster has GPUs, else 0."""


class EncodeSettings(PartSettings):
    renamed_section: ClassVar[str] = "latents"
    renamed_keys: ClassVar[dict[str, str]] = {"stored": "posterior"}

    buckets: tuple[BucketSettings, ...] = ()
    """Clip sizes. Each video goes to the longest bucket that it fills, of equally long ones to the one with the nearest
    aspect ratio; images, and videos too short for the others, to a bucket of 1 frame. Empty: one bucket with
    data.frames, data.height and data.width."""
    part: Annotated[str | None, MayChange] = None
    """i/n, such as 3/8: only the i-th of n parts of the video shards is encoded, on any machine that shares the folder,
    in any order, together with other parts or not. Then encode.finish=true. null: all, and the folder is finished."""
    finish: Annotated[bool, MayChange] = False
    """Nothing is encoded: the folder of which all parts are encoded gets its manifest, index and account. What is
    missing is an error that names it."""
    engine: Annotated[Literal["processes", "ray"], MayChange] = "processes"
    """processes: the command's own, one or those of accelerate launch. ray: those of the Ray cluster that RAY_ADDRESS
    names (or of this machine), for a command of one process; needs the extra `ray`."""
    ray: Annotated[RaySettings, MayChange] = RaySettings()
    """The processes of engine=ray."""
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
    text: Literal["with_latents", "separate", "only"] = "with_latents"
    """Where the captions' embeddings are. with_latents: in the entries of the latents. separate: in shards of their
    own, LATENTS/text, once a video, so that captions can change, or another text encoder be used, without encoding the
    videos again. only: nothing but LATENTS/text is made, for latents that are there, also those of with_latents, whose
    own text is then not used any more; captions are found by shard name and key. Remove LATENTS/text first for another
    text encoder, and for new captions with text.encoder=learned."""
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

    @property
    def recorded(self) -> EncodeSettings:
        """The settings that are recorded in the folder: how its work is divided does not belong to them."""
        return self.model_copy(update={"part": None, "finish": False, "engine": "processes", "ray": RaySettings()})

    def check_sizes(self, data: DataSettings, ratios: tuple[int, int]) -> None:
        """Raise InputError for clips that a VAE with these (temporal, spatial) compression ratios does not take."""
        for bucket in self.buckets_for(data):
            section = f"encode.buckets: {bucket.name}" if self.buckets else "data"
            check_clip_size(bucket.frames, bucket.height, bucket.width, ratios, section)

    def buckets_for(self, data: DataSettings) -> tuple[BucketSettings, ...]:
        """The buckets; where none is given, the one of the `data` section."""
        return self.buckets or (BucketSettings.of_clips(data),)
