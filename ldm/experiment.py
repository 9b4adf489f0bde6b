"""One experiment: a YAML file with a section for each stage, and the path of its run folder.

Settings classes are in modules that import neither torch nor anything built on it, one `settings.py` in each folder.
So `--help` and the error for a mistyped key appear at once; slow imports come afterwards.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from pydantic import Field, model_validator

from ldm.arguments import CommandParser, parse_command_line
from ldm.demo.settings import DemoVideoSettings
from ldm.encoding.settings import EncodeSettings
from ldm.evaluation.settings import EvalLDMSettings
from ldm.networks.settings import TextSettings
from ldm.sampling.settings import SampleSettings
from ldm.training.settings import LDMSettings
from odvae.architecture.frame_counts import check_frame_count
from odvae.clips.settings import DataSettings
from odvae.running.commands import command_line
from odvae.running.run_folder import RunFolder
from odvae.running.settings import Settings
from odvae.settings import EvalVAESettings, VAESettings
from odvae.storage.paths import open_path, open_target
from odvae.training.settings import Tracker

# The configs that come with the project: a wheel carries the checkout's folder inside the package.
_INSTALLED = Path(__file__).resolve().parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "configs"
DEFAULT_CONFIG = CONFIGS / "demo.yaml"


class Experiment(Settings):
    run: str = "runs/demo"
    """Run folder, a path or a URL (s3://, gs://, hf://): each stage writes its own folder in it and reads those of
    earlier stages."""
    seed: int = 0
    """Seed of all random numbers."""
    deterministic: bool = False
    """Deterministic algorithms of torch, cuBLAS and cuDNN only, slower on GPUs: the same command then computes the same
    bits on the same kind of GPU. An operation without one is an error that names it. On CPUs nothing changes."""
    step_timeout_minutes: float = Field(15.0, gt=0)
    """Minutes after which an exchange between the ranks of a training step (NCCL's on GPUs) counts as hung and ends the
    launch. Waits outside of steps, as for a rank that hashes files or saves, have twelve hours."""
    tracker: Tracker = "none"
    """Tracker to log to besides metrics.jsonl; wandb also works offline (WANDB_MODE=offline). One that cannot start is
    an error; one that fails later is reported once, and the training continues without it."""
    demo_videos: DemoVideoSettings | None = None
    """Demo videos, rendered and packed where the run folder has no shards yet; null: the shards must exist."""
    data: DataSettings = DataSettings()
    """Videos, and the clips taken from them."""
    vae: VAESettings = VAESettings()
    """The video VAE and its training."""
    text: TextSettings = TextSettings()
    """Text encoder of the captions."""
    encode: EncodeSettings = EncodeSettings()
    """Encoding of the videos into latents."""
    ldm: LDMSettings = LDMSettings()
    """The latent diffusion model and its training."""
    sample: SampleSettings = SampleSettings()
    """Sampling of videos."""
    eval_vae: EvalVAESettings = EvalVAESettings()
    """Evaluation of the VAE."""
    eval_ldm: EvalLDMSettings = EvalLDMSettings()
    """Evaluation of the generated videos, and the report page."""

    @model_validator(mode="after")
    def _training_clips_are_no_longer_than_the_clips(self) -> Experiment:
        frames = self.vae.video_phase.frames if self.vae.video_phase else None
        if frames is not None and frames > self.data.frames:
            raise ValueError(f"vae.video_phase.frames={frames} is more than data.frames={self.data.frames}")
        return self

    @model_validator(mode="after")
    def _folders_are_paths_or_urls(self) -> Experiment:
        open_target(self.run, "run")
        open_path(self.data.shards or "")
        return self

    @model_validator(mode="after")
    def _the_vae_takes_clips_of_these_sizes(self) -> Experiment:
        ratios, phase = self.vae.compression, self.vae.video_phase
        if ratios is None:
            return self  # known only when the VAE is loaded: the stages check it
        self.encode.check_sizes(self.data, ratios)
        self.eval_vae.check_sizes(self.data, ratios, tiled=phase is not None)
        if phase is not None and phase.frames is not None:
            check_frame_count(phase.frames, ratios[0], "vae.video_phase.frames")
        return self

    @property
    def folders(self) -> RunFolder:
        return RunFolder(open_path(self.run))

    @property
    def shards(self) -> Path:
        return open_path(self.data.shards) if self.data.shards else self.folders.shards


def parse_experiment(
    description: str | None, extra: CommandParser | None = None
) -> tuple[Experiment, argparse.Namespace]:
    """The experiment given on the command line, and the options of `extra`; then joins the other ranks of the launch.

    A command imports its stage after this call, not at its top: the stage imports torch, diffusers and the like.
    """
    parsed = parse_command_line(Experiment, description or "", DEFAULT_CONFIG, extra)
    from odvae.running.distributed import join_ranks  # torch and accelerate
    from odvae.running.seeds import use_deterministic_algorithms

    if parsed[0].deterministic:
        use_deterministic_algorithms()
    join_ranks(parsed[0].step_timeout_minutes)
    return parsed


def announce(output: Path, next_command: str | None, options: argparse.Namespace) -> None:
    """Print, at a stage's end, where its output is and the next command (with the same config and overrides)."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    print(f"\noutput: {output}", flush=True)
    if next_command:
        config = ["--config", str(options.config)] if options.config != DEFAULT_CONFIG else []
        print(f"next:   {command_line(next_command)} {shlex.join(config + options.overrides)}".rstrip(), flush=True)
