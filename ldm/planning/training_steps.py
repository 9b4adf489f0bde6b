"""The training steps of an experiment, ready to run on fake tensors: VAE (both phases) and latent diffusion model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.experiment import Experiment
from ldm.networks.factory import build_network, network_factory
from ldm.networks.lora import add_lora
from ldm.networks.settings import AttentionBackend
from ldm.planning.latents import planned_manifest
from ldm.training.batch_sizes import batch_sizes
from ldm.training.diffusion_batches import BatchMaker, per_sample_mse
from ldm.training.step import apply_model_options, training_step
from odvae.initial_weights import make_image_vae
from odvae.losses import VAELoss
from odvae.regularizers.regularized_vae import LatentChanges
from odvae.running.errors import InputError
from odvae.settings import ImagePhaseSettings, PhaseSettings, VideoPhaseSettings
from odvae.train import random_odvae
from odvae.training.state import TrainingState
from odvae.training.throughput import Peaks, StepMeter
from odvae.training_step import prepare_network
from odvae.training_step import training_step as vae_training_step
from odvae.vae_batches import Batch
from odvae.video.pixels import to_float
from odvae.video_vae import VideoVAE

# A step late in a training: the GAN is active, and the learning rate warmed up.
_LATE_STEP = 10_000_000


@dataclass
class PreparedStep:
    """A step that can be run, and what lies on the device before it, by kind."""

    run: Callable[[], object]
    held: dict[str, list[Tensor]] = field(default_factory=dict)
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    network: nn.Module | None = None
    """The network that is trained."""


def image_step(experiment: Experiment, device: torch.device, folder: Path) -> PreparedStep:
    """A step of the VAE's image phase."""
    phase = experiment.vae.image_phase
    assert isinstance(phase, ImagePhaseSettings)
    with device:
        vae = make_image_vae(experiment.vae.model)
    images = phase.batch_size * min(phase.images_per_clip, experiment.data.frames)
    return _vae_step(experiment, vae, phase, (images, 1), device, folder)


def video_step(experiment: Experiment, device: torch.device, folder: Path, images: bool = False) -> PreparedStep:
    """A step of the VAE's video phase, on clips or (of `image_every`) on single images."""
    phase = experiment.vae.video_phase
    assert isinstance(phase, VideoPhaseSettings)
    with device:
        vae = random_odvae(experiment.vae.model)
    frames = phase.frames or experiment.data.frames
    count = max(1, phase.images_per_step // phase.gradient_accumulation_steps)
    return _vae_step(experiment, vae, phase, (count, 1) if images else (phase.batch_size, frames), device, folder)


def _vae_step(
    experiment: Experiment,
    vae: VideoVAE,
    phase: PhaseSettings,
    size: tuple[int, int],
    device: torch.device,
    folder: Path,
) -> PreparedStep:
    """As `odvae.train.fit` prepares it."""
    settings, data = experiment.vae, experiment.data
    plain = phase.model_copy(update={"compile": False})  # compilation is for real tensors
    with device:
        prepare_network(vae, plain)
        chosen = settings.regularizers
        changes = None if chosen is None else LatentChanges(chosen, vae, experiment.seed, "rehearsal")
        trained = None if changes is None else changes.trained_module(data, settings.loss.lpips is not None)
        state = TrainingState(vae, plain, folder, "none", "rehearsal", trained)
        vae_loss = VAELoss(settings.loss, vae, plain, state.accelerator, None, settings.regularizers)
    (count, frames), cuda = size, device.type == "cuda"

    def batches() -> Iterator[Batch]:
        while True:  # as `odvae.clips.loader.endless_loader` and `odvae.vae_batches.Batches` make them
            clips = torch.zeros((count, frames, data.height, data.width, 3), dtype=torch.uint8)
            video = (clips.pin_memory() if cuda else clips).to(device, non_blocking=True)
            yield Batch(to_float(video), "posterior", list(range(count)))

    endless, meter = batches(), _uncounted()
    others: list[nn.Module] = [x for x in (vae_loss.perceptual, vae_loss.gan and vae_loss.gan.network) if x is not None]
    optimizers = [state.optimizer, *([vae_loss.gan.optimizer] if vae_loss.gan is not None else [])]
    return PreparedStep(
        lambda: vae_training_step(state, vae_loss, endless, meter, experiment.seed, _LATE_STEP, changes),
        {
            "parameters": list(state.model.parameters()),
            "EMA": [value for average in state.averages for value in average.values.values()],
            "loss networks": [x for module in others for x in (*module.parameters(), *module.buffers())],
        },
        [optimizer.optimizer for optimizer in optimizers],
        state.network,
    )


def new_network(experiment: Experiment, shape: tuple[int, int, int, int]) -> Any:  # a Network and a torch module
    """The network of the LDM, for latents of this shape (c, k, h, w); with its adapter, where a LoRA is trained.

    Raises InputError for fine-tuning of a network whose sizes are not known.
    """
    settings = experiment.ldm
    if settings.network is None:
        raise InputError(
            f"ldm.init_from={settings.init_from} is no run of a config of this project, so the sizes of its network "
            "are not known: give them in ldm.dit or ldm.unet to rehearse or plan its fine-tuning"
        )
    manifest = planned_manifest(experiment, shape)
    network: Any = build_network(network_factory(settings.network), settings.conditioning, settings.objective, manifest)
    if settings.lora is not None:
        add_lora(network, settings.lora)
    return network


def rehearsed_backend(backend: AttentionBackend) -> AttentionBackend:
    """The back end of attention in a rehearsal: xformers' kernels are as torch's memory-efficient one."""
    return "efficient" if backend == "xformers" else backend


def ldm_step(
    experiment: Experiment, shape: tuple[int, int, int, int], device: torch.device, folder: Path
) -> PreparedStep:
    """A step of the LDM's training on latents of this shape (c, k, h, w), as `ldm.train.fit` prepares it."""
    settings = experiment.ldm
    optimization = settings.optimization.model_copy(update={"compile": False})
    backend = rehearsed_backend(settings.attention_backend)
    plain = settings.model_copy(update={"optimization": optimization, "attention_backend": backend})
    manifest = planned_manifest(experiment, shape)
    with device:
        network = new_network(experiment, shape)
        apply_model_options(network, plain)
        state = TrainingState(network, optimization, folder, "none", "rehearsal")
    text = settings.conditioning.kind == "text"
    size, cuda = (manifest.text_tokens, manifest.text_width), device.type == "cuda"
    empty = (torch.zeros(size), torch.ones(size[:1], dtype=torch.bool)) if text else (None, None)
    maker = BatchMaker(manifest, settings.conditioning, settings.objective, device, *empty)
    (b,) = batch_sizes(settings, network, {"planned": shape}).values()

    def batches() -> Iterator:
        while True:  # as `ldm.latents.entries.collate_entries` makes them
            entries = {name: torch.zeros(b, *shape) for name in ("mean", "std")}
            entries |= {"label": torch.zeros(b, dtype=torch.long), "number": torch.arange(b)}
            if text:
                entries |= {"text": torch.zeros(b, *size), "text_mask": torch.ones(b, size[0], dtype=torch.bool)}
            on_host = {name: value.pin_memory() if cuda else value for name, value in entries.items()}
            yield maker.make_batch(on_host, experiment.seed)

    endless, meter = batches(), _uncounted()
    return PreparedStep(
        lambda: training_step(state, per_sample_mse, endless, meter, _LATE_STEP),
        {
            "parameters": list(network.parameters()),
            "EMA": [value for average in state.averages for value in average.values.values()],
        },
        [state.optimizer.optimizer],
        network,
    )


def _uncounted() -> StepMeter[Any]:
    """A meter that counts no FLOPs: the recorder does."""
    return StepMeter("units", lambda _: (0, 0), ranks=1, peaks=Peaks(None, 1.0))
