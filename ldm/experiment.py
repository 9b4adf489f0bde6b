"""One experiment: a YAML with a section a stage, and where its run folder lies."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from accelerate import PartialState
from pydantic import Field, model_validator

from ldm.demo.videos import write_demo_videos
from ldm.encode import EncodeSettings
from ldm.evaluate import EvalLDMSettings
from ldm.networks.text_encoder import TextSettings
from ldm.sample import SampleSettings
from ldm.train import LDMSettings
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.evaluate import EvalVAESettings
from odvae.frame_counts import check_frame_count
from odvae.running.commands import command_line
from odvae.running.distributed import join_ranks
from odvae.running.errors import InputError
from odvae.running.run_folder import RunFolder
from odvae.running.settings import Settings, parse_command_line
from odvae.shards.packing import pack_folder
from odvae.shards.report import describe
from odvae.train import VAESettings
from odvae.training.optimization import Tracker

# The configs that come with the project: a wheel carries the checkout's folder inside the package.
_INSTALLED = Path(__file__).resolve().parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "configs"
DEFAULT_CONFIG = CONFIGS / "demo.yaml"


class DemoVideoSettings(Settings):
    count: int = Field(2400, ge=1)
    """Videos to render."""
    fps: int = Field(8, ge=1)
    """Frames per second of the files."""
    seed: int = 0
    """Seed of the scenes."""


class Experiment(Settings):
    run: str = "runs/demo"
    """Run folder: each stage writes its own folder in it and reads the one before."""
    seed: int = 0
    """Seed of everything random."""
    tracker: Tracker = "none"
    """Where numbers and pictures go besides metrics.jsonl; wandb also works offline (WANDB_MODE=offline)."""
    demo_videos: DemoVideoSettings | None = None
    """Rendered into the run folder and packed when there are no shards yet; null: the shards must exist."""
    data: DataSettings = DataSettings()
    """Which clips are taken from the videos."""
    vae: VAESettings = VAESettings()
    """The video VAE and its training."""
    text: TextSettings = TextSettings()
    """What turns captions into embeddings."""
    encode: EncodeSettings = EncodeSettings()
    """How videos are encoded for the LDM."""
    ldm: LDMSettings = LDMSettings()
    """The latent diffusion model and its training."""
    sample: SampleSettings = SampleSettings()
    """What is generated, and how."""
    eval_vae: EvalVAESettings = EvalVAESettings()
    """How the VAE is scored."""
    eval_ldm: EvalLDMSettings = EvalLDMSettings()
    """What is scored and shown."""

    @model_validator(mode="after")
    def _training_clips_are_no_longer_than_the_clips(self) -> Experiment:
        frames = self.vae.video_phase.frames if self.vae.video_phase else None
        if frames is not None and frames > self.data.frames:
            raise ValueError(f"vae.video_phase.frames={frames} is more than data.frames={self.data.frames}")
        return self

    @model_validator(mode="after")
    def _the_vae_takes_clips_of_these_sizes(self) -> Experiment:
        ratios, phase = self.vae.compression, self.vae.video_phase
        self.encode.check_sizes(self.data, ratios)
        self.eval_vae.check_sizes(self.data, ratios, tiled=phase is not None)
        if phase is not None and phase.frames is not None:
            check_frame_count(phase.frames, ratios[0], "vae.video_phase.frames")
        return self

    @property
    def folders(self) -> RunFolder:
        return RunFolder(Path(self.run))

    @property
    def shards(self) -> Path:
        return Path(self.data.shards) if self.data.shards else self.folders.shards


def parse_experiment(
    description: str | None, extra: argparse.ArgumentParser | None = None
) -> tuple[Experiment, argparse.Namespace]:
    """The experiment a pipeline script was asked for, and the options of `extra`; joins the launch's other ranks."""
    join_ranks()
    return parse_command_line(Experiment, description or "", DEFAULT_CONFIG, extra)


def open_videos(experiment: Experiment) -> VideoSet:
    """The experiment's videos. The demo's are rendered and packed first where they are not there yet.

    Raises InputError that names the command which makes missing shards.
    """
    shards, state = experiment.shards, PartialState()
    command = f"{command_line('make_shards')} FOLDER_OF_VIDEOS {shlex.quote(str(shards))}"
    with state.main_process_first():
        if experiment.demo_videos is not None and state.is_main_process and not shards.exists():
            _render_demo(experiment.demo_videos, experiment.data, shards)
        videos = VideoSet(shards, experiment.data, command)
    if state.is_main_process:
        print(f"{shards}: {videos.describe()}", flush=True)
    return videos


def _render_demo(demo: DemoVideoSettings, data: DataSettings, shards: Path) -> None:
    if data.height != data.width:
        raise InputError(f"demo videos are square; data.height={data.height}, data.width={data.width}")
    folder = shards.parent / "videos"
    write_demo_videos(folder, demo.count, data.span, data.height, demo.fps, demo.seed)
    print(describe(pack_folder(folder, shards), shards), flush=True)


def announce(output: Path, next_command: str | None, options: argparse.Namespace) -> None:
    """Say, at a stage's end, where its output is and which command comes next (with the same config and overrides)."""
    if not PartialState().is_main_process:
        return
    print(f"\noutput: {output}", flush=True)
    if next_command:
        config = ["--config", str(options.config)] if options.config != DEFAULT_CONFIG else []
        print(f"next:   {command_line(next_command)} {shlex.join(config + options.overrides)}".rstrip(), flush=True)
