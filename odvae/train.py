"""Training of the VAE: first an image VAE on single frames, which is then inflated to OD-VAE and trained on clips.

`train_vae` is the entry function; `fit` is the training loop of both phases.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState

from odvae.architecture.frame_counts import check_clip_size
from odvae.architecture.inflation_mixin import RATES
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.evaluation.validation import held_out_clips, validate
from odvae.initial_weights import initialize_from_scratch, load_image_vae, load_video_vae, make_image_vae
from odvae.latent_statistics import latent_statistics
from odvae.losses import PixelLoss, VAELoss
from odvae.measuring import peaks_of
from odvae.model import ODVAE
from odvae.per_frame import PerFrameVAE
from odvae.regularizers.regularized_vae import LatentChanges
from odvae.running.distributed import decide_on_main_process, main_process_first
from odvae.running.errors import InputError
from odvae.running.files import install_folder
from odvae.running.progress import progress_bar
from odvae.running.seeds import derive_seed
from odvae.running.stage import Stage, names_of
from odvae.settings import ModelSettings, PhaseSettings, VAESettings
from odvae.training.checkpoints import checkpoint_facts, checkpoints_of
from odvae.training.settings import Tracker
from odvae.training.state import TrainingState
from odvae.training.throughput import StepMeter
from odvae.training_step import ReconstructionCost, prepare_network, training_step
from odvae.vae_batches import Batches
from odvae.video_vae import VAEFactory, VideoVAE, compression_of, load_pretrained_vae
from odvae.weights.pretrained import load_model

TrainedVAE = TypeVar("TrainedVAE", bound=VideoVAE)


@dataclass(frozen=True)
class VAERun:
    """Settings, videos and functions that both phases of a run share."""

    settings: VAESettings
    videos: VideoSet
    stage: Stage
    seed: int
    tracker: Tracker
    make_vae: VAEFactory
    pixel_loss: PixelLoss | None

    @property
    def folder(self) -> Path:
        return self.stage.folder


def train_vae(
    settings: VAESettings,
    data: DataSettings,
    videos: VideoSet,
    folder: Path,
    seed: int,
    tracker: Tracker = "none",
    *,
    make_vae: VAEFactory | None = None,
    pixel_loss: PixelLoss | None = None,
) -> None:
    """Train the VAE into `folder` (a diffusers model folder), or resume an interrupted run.

    With `settings.pretrained` nothing is trained: the VAE is saved to `folder`, and its latents' mean and standard
    deviation are measured and added if its config has those entries and they are null. For VAEs and losses from outside
    this project (docs/your_own.md): `make_vae` creates a video VAE with random weights in place of an OD-VAE, and needs
    init=random; `pixel_loss` replaces `settings.loss.reconstruction`.

    Raises InputError where the folder holds a run with other settings, and where a pretrained VAE does not accept clips
    of the size in `data`. Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint and exit with status 130, 143 or 138.
    """
    state = PartialState()
    if make_vae is not None and settings.init != "random":
        raise InputError(f"make_vae creates a VAE with random weights: set vae.init=random, found {settings.init}")
    pretrained = None if settings.pretrained is None else open_pretrained(settings.pretrained, data)
    own = names_of(make_vae=make_vae, pixel_loss=pixel_loss)
    with Stage(folder, {"seed": seed, "vae": settings, "data": data, **own}) as stage:
        if stage.finished:
            return
        make = make_vae or functools.partial(random_odvae, settings.model)
        run = VAERun(settings, videos, stage, seed, tracker, make, pixel_loss)
        vae: Any = trained_vae(run) if pretrained is None else pretrained  # Any: a VideoVAE and a diffusers model
        if pretrained is None or vae.config.get("latents_mean", "no such entry") is None:
            mean, std = latent_statistics(vae, videos, settings.statistics_clips, state.device)
            vae.register_to_config(latents_mean=mean, latents_std=std)
        account = videos.account()
        if state.is_main_process:
            with install_folder(stage.folder) as temporary:
                vae.save_pretrained(temporary)
            account.save(stage.folder)
            print(account.table(), flush=True)


def open_pretrained(name: str, data: DataSettings) -> VideoVAE:
    """Load a pretrained VAE. Raises InputError if it does not accept clips of the size in `data`."""
    with main_process_first():  # the main process downloads it
        vae = load_pretrained_vae(name)
    check_clip_size(data.frames, data.height, data.width, compression_of(vae), "data")
    if PartialState().is_main_process:
        print(f"vae.pretrained={name} is used without training (vae.init_from trains an OD-VAE further)", flush=True)
    return vae


def trained_vae(run: VAERun) -> VideoVAE:
    """Run both phases: train the image VAE, then inflate it to the video VAE and train that on clips."""
    settings = run.settings
    if PartialState().is_main_process:
        print(f"loss: {settings.loss.describe(run.pixel_loss and run.pixel_loss.__name__)}", flush=True)
        if settings.regularizers is not None:
            print(f"regularizers of the latents: {', '.join(settings.regularizers.describe()) or 'none'}", flush=True)
    if settings.video_phase is None:
        return initial_image_vae(run)
    return fit(initial_video_vae(run), "video VAE", settings.video_phase, run, run.folder)


def initial_video_vae(run: VAERun) -> VideoVAE:
    """The video VAE before its training: inflated from an image VAE, with another OD-VAE's weights, or random."""
    settings, model = run.settings, run.settings.model
    torch.manual_seed(run.seed)
    if settings.init_from is not None:
        return load_video_vae(settings.init_from, model)
    if settings.init == "random":
        return run.make_vae()
    options = {key: model.arguments()[key] for key in ("norm", "temporal_upsample", *RATES)}
    image_vae = initial_image_vae(run)
    torch.manual_seed(run.seed)  # for layers that the image VAE does not have
    return ODVAE.from_image_vae(image_vae, model.variant, settings.init, **options)


def random_odvae(model: ModelSettings) -> ODVAE:
    """An OD-VAE with random weights."""
    vae = ODVAE(**model.arguments())
    initialize_from_scratch(vae)
    return vae


def initial_image_vae(run: VAERun) -> PerFrameVAE:
    """The image VAE: given, trained by an earlier run, or trained now."""
    settings = run.settings
    if settings.init_image_vae is not None:
        return load_image_vae(settings.init_image_vae, settings.model)
    folder = run.folder / "image_vae"
    assert settings.image_phase is not None  # checked by the settings' validator
    steps = settings.image_phase.steps
    if decide_on_main_process(lambda: image_vae_is_trained(folder, steps, run.folder)):
        return load_model(PerFrameVAE, folder, str(folder), "the image VAE")
    torch.manual_seed(run.seed)
    image_vae = fit(make_image_vae(settings.model), "image VAE", settings.image_phase, run, folder)
    if PartialState().is_main_process:
        with install_folder(folder) as temporary:
            image_vae.save_pretrained(temporary)
    run.stage.exchange()
    return image_vae


def image_vae_is_trained(folder: Path, steps: int, video_folder: Path) -> bool:
    """Whether `folder` holds an image VAE that was trained for at least `steps` steps.

    Raises InputError if the training in `video_folder` started from an image VAE with another number of steps.
    """
    if not (folder / "config.json").exists():
        return False
    checkpoints = checkpoints_of(folder)
    trained = checkpoint_facts(checkpoints[-1])["step"] if checkpoints else steps  # without any: assumed complete
    if trained != steps and checkpoints_of(video_folder):
        raise InputError(
            f"{folder} was trained for {trained} steps and the training of the video VAE started from it, but "
            f"vae.image_phase.steps is now {steps}; choose another run folder (run=...)"
        )
    return trained >= steps


def fit(network: TrainedVAE, name: str, optimization: PhaseSettings, run: VAERun, folder: Path) -> TrainedVAE:
    """Train a network for `optimization.steps` steps on single frames (image phase) or clips (video phase).

    Returns it with its EMA weights. `step` counts completed optimizer steps. Data, noise and learning rate are
    functions of it, so a run that is killed at any point and resumed ends with the same weights.
    """
    settings, cost = run.settings, ReconstructionCost(network)
    prepare_network(network, optimization)
    changes = None if (chosen := settings.regularizers) is None else LatentChanges(chosen, network, run.seed, name)
    trained = None if changes is None else changes.trained_module(run.videos.data, settings.loss.lpips is not None)
    title = f"{run.folder.parent.name} {name}"
    state = TrainingState(network, optimization, folder, run.tracker, title, trained, run.stage)
    accelerator = state.accelerator
    torch.manual_seed(derive_seed(run.seed, name))  # for the discriminator's weights; the same after a resume
    vae_loss = VAELoss(settings.loss, network, optimization, accelerator, run.pixel_loss, settings.regularizers)
    for carried in vae_loss.states:
        state.checkpoints.remember(carried)
    done = state.resume()
    held_out = held_out_clips(run.videos, settings.validation_clips, accelerator)  # before training's workers start
    batches = Batches(run.videos, optimization, state.plan, accelerator.device, run.seed).from_step(done)
    peaks = peaks_of(accelerator.device, accelerator.mixed_precision == "bf16", settings.peak_tflops)
    meter = StepMeter("frames", cost, state.plan.ranks, peaks)
    progress = progress_bar(f"training the {name}", done, optimization.steps)

    for step in run.stage.steps(done + 1, optimization.steps):
        terms, gradient_norm, learning_rate = training_step(state, vae_loss, batches, meter, run.seed, step, changes)
        progress.update()

        last = step == optimization.steps
        if step % optimization.log_every == 0 or last:
            row = {key: float(value) for key, value in terms.items()}
            row |= {"gradient_norm": float(gradient_norm), "learning_rate": learning_rate}
            state.log.row(step, **row, **meter.row(), skipped_steps=state.guard.report(step))
            progress.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        with meter.paused():
            if step % optimization.validate_every == 0 or last:
                with state.ema.in_network():
                    validate(network, held_out, vae_loss.perceptual, state.log, step, accelerator)
            state.save_and_stop_when_due(step, run.stage)
    progress.close()
    state.finish()
    network.eval()  # type: ignore[attr-defined]  # a torch module
    return network
