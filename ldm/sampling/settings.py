"""Settings of sampling."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from odvae.running.settings import Settings

SamplerName = Literal["euler", "heun", "ddim", "dpmsolver++", "unipc"]


class SampleSettings(Settings):
    renamed_section: ClassVar = "samples"
    renamed_keys: ClassVar = {"steps": "num_inference_steps", "guidance": "guidance_scale"}

    sampler: SamplerName | None = None
    """diffusers' scheduler: euler, heun, dpmsolver++ or unipc for rectified flow; ddim, dpmsolver++ or unipc for the
    others; null: euler or ddim."""
    num_inference_steps: int = Field(20, ge=1)
    """Steps of the sampler."""
    guidance_scale: float = Field(3.0, ge=1)
    """Classifier-free guidance; 1 is none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels (0 data, 1 noise) within which guidance acts."""
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    """How far guided answers get back the spread of unguided ones, against oversaturation."""
    ema_decay: float | None = None
    """Whose averaged weights are used: one of `ldm.optimization.extra_ema_decays`; null: the run's main ones."""
    batch_size: int = Field(1, ge=1)
    """Videos made at a time on each rank. With 1 a video is the same to the last bit whichever others are made; more
    are faster where the network is small, and then a video differs by rounding with its place among others."""
    frames: int | None = Field(None, ge=1)
    """Frames a video, as many as the VAE takes; null: as trained."""
    height: int | None = Field(None, ge=1)
    """Height in pixels; null: as trained."""
    width: int | None = Field(None, ge=1)
    """Width in pixels; null: as trained."""
    count: int = Field(96, ge=1)
    """Videos made for the evaluation when nothing is asked for: of held-out captions, or of all classes in turn."""
    unseen_count: int = Field(0, ge=0)
    """Demo videos only: prompts for combinations of shape, color and motion that training never saw."""
    fps: float = Field(8.0, gt=0)
    """Frames per second of the files."""
    gif: bool = False
    """Write a GIF beside each mp4."""
