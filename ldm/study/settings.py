"""Settings of a study: the experiment that its runs share, and what they vary."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ldm.experiment import Experiment
from ldm.training.settings import LDMSettings
from odvae.architecture.frame_counts import check_frame_count, check_tile_frames
from odvae.running.settings import Settings
from odvae.settings import Init

Variant = Literal[1, 2, 3, 4]


class LongClipSettings(Settings):
    frames: int = Field(33, ge=2)
    """Frames of the clips that are encoded whole, streamed and tiled, a count that the VAE takes (at 4x: 4k+1)."""
    count: int = Field(24, ge=2)
    """Demo videos rendered for this comparison; half of them are held out and scored."""
    tile_frames: int = Field(9, ge=2)
    """Frames per tile of temporal tiling (at 4x: 4m+1)."""


class StudySettings(Settings):
    run: str = "runs/study"
    """Folder of the study: a run folder for each run, and the page."""
    experiment: Experiment = Experiment()
    """Settings that all runs share: an experiment as in configs/*.yaml. Its `run` and `ldm` are not used."""
    variants: tuple[Variant, ...] = (1, 2, 3, 4)
    """Comparison a: variants to train; the one in `experiment.vae.model` is always trained."""
    initializations: tuple[Init, ...] = ("tail", "average", "random")
    """Comparison b: initializations to train; tail is always trained."""
    long_clips: LongClipSettings | None = LongClipSettings()
    """Comparison c: whole, streamed and tiled clips; null: not compared."""
    generators: dict[str, LDMSettings] = Field(default_factory=dict)
    """Comparison d: generators trained on image-VAE latents and on OD-VAE latents: a name and an `ldm` section each."""
    measured_steps: int = Field(8, ge=2)
    """Training steps that are timed for the cost of a generator."""
    processes: int = Field(1, ge=1)
    """Processes of each stage."""

    @model_validator(mode="after")
    def _there_is_something_to_compare(self) -> StudySettings:
        if self.experiment.vae.init != "tail" or self.experiment.vae.video_phase is None:
            raise ValueError(
                "experiment.vae must have init=tail and a video_phase: the other runs of the study change one of them"
            )
        if self.experiment.vae.init_from is not None:
            raise ValueError("experiment.vae.init_from must be null: all runs begin from one image VAE")
        if self.long_clips is not None and self.experiment.vae.compression is not None:
            ratio, _ = self.experiment.vae.compression
            check_frame_count(self.long_clips.frames, ratio, "long_clips.frames")
            check_tile_frames(self.long_clips.tile_frames, ratio, "long_clips.tile_frames")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.run)

    @property
    def main_vae(self) -> str:
        """The run whose VAE represents OD-VAE in the comparisons."""
        return variant_name(self.experiment.vae.model.variant)


def variant_name(variant: int) -> str:
    """The name of the run that trains this variant."""
    return f"variant_{variant}"
