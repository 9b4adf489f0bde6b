"""The model behind the page: a pipeline, what it is conditioned on, and the settings that its run sampled with."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ldm.app.limits import Limits
from ldm.pipeline import TextToVideoPipeline
from ldm.sample import load_pipeline
from ldm.sampling.sample_requests import HELD_OUT
from ldm.sampling.sample_table import SAMPLE_TABLE, read_sample_rows
from ldm.sampling.settings import SampleSettings
from odvae.architecture.frame_counts import video_frames
from odvae.running.errors import InputError
from odvae.running.run_folder import RunFolder
from odvae.running.settings import make_settings

NUM_EXAMPLES = 6


@dataclass
class Model:
    """A loaded model. Its pipeline is used by one request at a time, under `lock`: a pipeline keeps state in a call."""

    pipeline: TextToVideoPipeline
    name: str
    settings: SampleSettings = field(default_factory=SampleSettings)
    """Steps, guidance and frame rate that the page begins with."""
    examples: list[str] = field(default_factory=list)
    """Prompts to try."""
    limits: Limits = field(default_factory=Limits)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def takes_text(self) -> bool:
        return self.pipeline.transformer.config.text_width is not None

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty for networks without."""
        return list(self.pipeline.transformer.config.class_names or [])

    @property
    def takes_first_frame(self) -> bool:
        return bool(self.pipeline.transformer.config.first_frame)

    @property
    def video_size(self) -> tuple[int, int, int]:
        """(frames, height, width) of the videos in training."""
        vae = self.pipeline.vae
        k, h, w = self.pipeline.transformer.config.sample_size
        factor = vae.spatial_compression_ratio
        return video_frames(k, vae.temporal_compression_ratio), h * factor, w * factor

    @property
    def longest(self) -> int:
        """The most frames that may be generated: twice the seconds of training, within the limits."""
        frames, height, width = self.video_size
        ratio = self.pipeline.vae.temporal_compression_ratio
        steps = min(2 * (frames - 1), self.limits.clip_pixels // (height * width) - 1) // ratio
        return max(frames, steps * ratio + 1)


def load(folder: Path, device: torch.device, limits: Limits | None = None) -> Model:
    """The model of a run folder, or of a folder that export_pipeline wrote.

    Raises InputError where it is neither, or a part is missing.
    """
    exported = (folder / "model_index.json").is_file()
    folders = RunFolder(folder.parent if exported else folder)  # export_pipeline writes into the run's by default
    if not exported and not folders.ldm.is_dir():
        found = "has neither an ldm/ folder nor a model_index.json" if folder.is_dir() else "is not there"
        raise InputError(
            f"{folder} {found}: give the folder of a run whose diffusion model is trained, or an exported pipeline"
        )
    settings, examples = _as_sampled(folders.samples)
    pipeline: TextToVideoPipeline
    if exported:
        pipeline = TextToVideoPipeline.from_pretrained(folder)
    else:
        pipeline = load_pipeline(folders.vae, folders.ldm, settings.sampler, settings.ema_decay)
    pipeline.set_progress_bar_config(disable=True)
    return Model(pipeline.to(device), folder.resolve().name, settings, examples, limits or Limits())


def _as_sampled(samples: Path) -> tuple[SampleSettings, list[str]]:
    """Settings and prompts of a run's samples, those for the evaluation first; the defaults where it has none."""
    rows = read_sample_rows(samples)
    rows = [row for row in rows if row["group"] == HELD_OUT] or rows
    if not rows:
        return SampleSettings(), []
    chosen = {name: rows[0][name] for name in ("num_inference_steps", "guidance_scale", "fps")}
    chosen |= {name: rows[0].get(name) for name in ("sampler", "ema_decay")}
    chosen |= {name: rows[0][name] for name in ("guidance_interval", "guidance_rescale") if name in rows[0]}
    prompts = dict.fromkeys(row.text("prompt") for row in rows if row["prompt"])
    settings = make_settings(SampleSettings, chosen, (), str(samples / SAMPLE_TABLE))
    return settings, list(prompts)[:NUM_EXAMPLES]
