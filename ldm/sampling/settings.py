"""Settings of sampling."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ldm.networks.settings import AttentionBackend
from odvae.running.settings import Precision, Settings

FileNames = Literal["prompt_and_seed", "vbench"]
SamplerName = Literal["euler", "heun", "ddim", "dpmsolver++", "unipc"]


class SampleSettings(Settings):
    renamed_section: ClassVar[str] = "samples"
    renamed_keys: ClassVar[dict[str, str]] = {"steps": "num_inference_steps", "guidance": "guidance_scale"}

    sampler: SamplerName | None = None
    """diffusers' scheduler: euler, heun, dpmsolver++ or unipc for rectified flow; ddim, dpmsolver++ or unipc for
    diffusion; null: euler or ddim."""
    num_inference_steps: int = Field(20, ge=1)
    """Sampling steps."""
    guidance_scale: float = Field(3.0, ge=1)
    """Scale of classifier-free guidance; 1 is none, as for networks without prompts and classes."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels (0 data, 1 noise), the lowest and the highest, at which guidance is applied."""
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    """How far (0 to 1) the guided prediction is rescaled to the standard deviation of the conditional one, against
    oversaturation."""
    precision: Precision = "auto"
    """Precision of the network and the decoder: autocast to bf16, or none (fp32); auto: bf16 on a GPU that supports it,
    otherwise fp32. Prompts are embedded and the steps of the sampler are made in fp32."""
    attention_backend: AttentionBackend = "sdpa"
    """Kernel of attention in the network, as `ldm.attention_backend`."""
    ema_decay: float | None = None
    """EMA weights to sample from: one of `ldm.optimization.extra_ema_decays`; null: those of
    `ldm.optimization.ema_decay`."""
    batch_size: int = Field(1, ge=1)
    """Videos generated at a time on each rank. With 1, a video is the same to the last bit whichever others are
    generated; more are faster for small networks, but rounding then depends on a video's position in its batch."""
    frames: int | None = Field(None, ge=1)
    """Frames per video, a count that the VAE takes; null: as in training."""
    height: int | None = Field(None, ge=1)
    """Height in pixels; null: as in training."""
    width: int | None = Field(None, ge=1)
    """Width in pixels; null: as in training."""
    count: int = Field(96, ge=1)
    """Videos generated for the evaluation, where no prompt, class or image is given: of held-out captions, or of all
    classes in turn."""
    unseen_count: int = Field(0, ge=0)
    """Demo videos only: videos generated from prompts whose combination of shape, color and motion was held out."""
    fps: float | None = Field(None, gt=0)
    """Frames per second of the files; null: those of the training clips."""
    lossless: bool = False
    """Write a lossless .mkv (FFV1) next to each mp4, which the evaluation then scores in its place: published distances
    are those of the frames themselves, and H.264 moves them."""
    truncate_prompts: bool = False
    """Truncate prompts of more tokens than `text.max_tokens`, as captions in training; otherwise they are an error."""
    file_names: FileNames = "prompt_and_seed"
    """Names of the videos of your own prompts: of their first letters and the seed (a-red-circle_seed0.mp4), or as
    VBench reads them, PROMPT-0.mp4 to PROMPT-4.mp4 with --count 5."""
    gif: bool = False
    """Write a GIF next to each mp4."""

    @model_validator(mode="after")
    def _guidance_interval_has_its_lowest_level_first(self) -> SampleSettings:
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                "guidance_interval must be two noise levels from 0 to 1, the lowest first, found "
                f"{list(self.guidance_interval)}"
            )
        return self
