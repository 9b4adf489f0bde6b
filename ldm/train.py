"""Training of the latent diffusion model on encoded clips, by rectified flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import default_collate

from ldm.dit import DiT
from ldm.encode import EMPTY_TEXT
from ldm.latents import LatentDataset, Manifest, check_latents, load_entry, load_manifest, open_latents, unpack_entry
from ldm.objective import interpolate, logit_normal, velocity
from odvae.loading import load_vae
from odvae.shared.checkpoints import StopRequest, begin_stage
from odvae.shared.clips import StepSampler, endless_loader
from odvae.shared.errors import InputError
from odvae.shared.fingerprints import weights_fingerprint
from odvae.shared.optimization import OptimizationSettings, Tracker, gradients_synced_at
from odvae.shared.run_folder import StageClock, install_folder, write_json
from odvae.shared.seeds import derive_seed, normal_per_sample
from odvae.shared.settings import Settings
from odvae.shared.tracking import MetricsLog, progress_bar
from odvae.shared.training import TrainingState

PROVENANCE = "trained_on.json"


class DiTSettings(Settings):
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent positions a token covers, along time, height and width."""
    width: int = Field(384, ge=16)
    """Width of the transformer."""
    depth: int = Field(12, ge=1)
    """Blocks."""
    heads: int = Field(6, ge=1)
    """Attention heads; width / heads must be an even number of at least 16."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLPs over the width."""
    rope_theta: float = Field(10000.0, gt=1)
    """Base of the rotary frequencies; a smaller one turns faster, for small grids."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> DiTSettings:
        if self.width % self.heads or self.width // self.heads % 2 or self.width // self.heads < 16:
            raise ValueError(f"width={self.width}, heads={self.heads}: width / heads must be even and at least 16")
        return self


class FlowSettings(Settings):
    time_mean: float = 0.0
    """Noise levels are sigmoid(time_mean + time_std * normal): a higher mean trains more on noisy latents."""
    time_std: float = Field(1.0, gt=0)
    """Spread of the noise levels."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of samples trained with the empty caption instead of theirs, which guidance needs."""


class LDMSettings(Settings):
    model: DiTSettings = DiTSettings()
    """The network."""
    flow: FlowSettings = FlowSettings()
    """What it learns."""
    optimization: OptimizationSettings = OptimizationSettings()
    """How it is trained."""
    workers: int = Field(0, ge=0)
    """Processes that read latents, a rank; 0 reads in the training process."""


def train_ldm(
    settings: LDMSettings, vae_folder: Path, latents_folder: Path, folder: Path, seed: int, tracker: Tracker = "none"
) -> None:
    """Train the DiT on the latents into `folder` (a diffusers model folder), or go on where an earlier run stopped.

    Raises InputError when the latents are missing, made by another VAE than `vae_folder`'s, or do not fit the network,
    and when `folder` holds a run with other settings. Ctrl-C and SIGTERM save and end with status 130 or 143.
    """
    manifest = load_manifest(latents_folder)
    vae_sha256 = weights_fingerprint(load_vae(vae_folder))
    check_latents(latents_folder, manifest, vae_sha256, vae_folder)
    _check_patches(manifest, settings.model)
    clock, stop = StageClock(folder), StopRequest()
    if begin_stage(folder, {"seed": seed, "ldm": settings}) and clock.finished:
        return
    torch.manual_seed(seed)
    network = make_network(settings.model, manifest)
    data = LatentData(latents_folder, manifest)
    network = fit(network, settings, data, folder, seed, tracker, clock, stop)
    if PartialState().is_main_process:
        with install_folder(folder) as aside:
            network.save_pretrained(aside)
            text_encoder = latents_folder / manifest.text_encoder
            provenance = {
                "vae_sha256": manifest.vae_sha256,
                "text_encoder": str(text_encoder) if text_encoder.exists() else manifest.text_encoder,
                "text_sha256": manifest.text_sha256,
                "data": manifest.data,
                "latents": str(latents_folder),
            }
            write_json(aside / PROVENANCE, provenance)
        clock.save(finished=True)
    PartialState().wait_for_everyone()


def make_network(model: DiTSettings, manifest: Manifest) -> DiT:
    """The DiT that fits the latents, with random weights."""
    return DiT(
        latent_channels=manifest.shape[0],
        sample_size=manifest.shape[1:],
        text_width=manifest.text_width,
        text_tokens=manifest.text_tokens,
        latents_mean=manifest.latents_mean,
        latents_std=manifest.latents_std,
        **model.model_dump(),
    )


def _check_patches(manifest: Manifest, model: DiTSettings) -> None:
    if any(size % patch for size, patch in zip(manifest.shape[1:], model.patch_size, strict=True)):
        raise InputError(
            f"ldm.model.patch_size={list(model.patch_size)} does not divide the latents' (t, h, w) = "
            f"{list(manifest.shape[1:])}"
        )


class LatentData:
    """The encoded clips of a folder, normalised per channel by the manifest's statistics."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.train, self.held_out = open_latents(folder, manifest)
        self.mean = torch.tensor(manifest.latents_mean).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(manifest.latents_std).view(1, -1, 1, 1, 1)
        path = folder / EMPTY_TEXT
        self.empty = unpack_entry(path.read_bytes(), str(path))


@dataclass(frozen=True)
class FlowBatch:
    """What one micro-step trains on; every random choice in it follows from the sample's number."""

    noisy: Tensor  # (b, c, t, h, w)
    target: Tensor  # (b, c, t, h, w)
    sigma: Tensor  # (b,)
    text: Tensor  # (b, m, d)
    text_mask: Tensor  # (b, m)


def make_flow_batch(batch: Mapping[str, Tensor], data: LatentData, flow: FlowSettings, seed: int) -> FlowBatch:
    """Draw latents from the posterior, a noise level and noise; drop some captions."""
    numbers, device = batch["number"].tolist(), batch["mean"].device
    shape = batch["mean"].shape[1:]
    latents = batch["mean"] + batch["std"] * normal_per_sample(shape, seed, "posterior", numbers, device)
    x = (latents - data.mean.to(device)) / data.std.to(device)
    eps = normal_per_sample(shape, seed, "noise", numbers, device)
    normal = normal_per_sample((), seed, "time", numbers, device)
    sigma = logit_normal(normal, flow.time_mean, flow.time_std)
    dropped = torch.tensor(
        [derive_seed(seed, "drop", n) / 2**63 < flow.caption_dropout for n in numbers], device=device
    )
    text = torch.where(dropped[:, None, None], data.empty["text"].to(device, batch["text"].dtype), batch["text"])
    text_mask = torch.where(dropped[:, None], data.empty["text_mask"].to(device), batch["text_mask"])
    return FlowBatch(interpolate(x, eps, sigma), velocity(x, eps), sigma, text, text_mask)


def flow_loss(model: nn.Module, batch: FlowBatch) -> Tensor:
    """Mean squared error of the predicted velocity, a sample: (b,)."""
    predicted = model(batch.noisy, batch.sigma, batch.text, batch.text_mask)
    return (predicted.float() - batch.target).square().mean(dim=(1, 2, 3, 4))


def fit(
    network: DiT,
    settings: LDMSettings,
    data: LatentData,
    folder: Path,
    seed: int,
    tracker: Tracker,
    clock: StageClock,
    stop: StopRequest,
) -> DiT:
    """Train for `optimization.steps` steps; returns the network with its averaged (EMA) weights.

    `step` counts completed optimiser steps. Data, noise and learning rate are functions of it, so a run that is
    killed anywhere and started again ends in the same weights.
    """
    optimization = settings.optimization
    state = TrainingState(network, optimization, folder, tracker, f"{folder.parent.name} LDM")
    accelerator, model, done = state.accelerator, state.model, state.resume()
    batches = latent_batches(data, settings, accelerator, seed, done)
    progress = progress_bar("training the LDM", done, optimization.steps)

    for step in range(done + 1, optimization.steps + 1):
        for micro_step in range(1, optimization.accumulate + 1):
            batch = next(batches)
            with gradients_synced_at(accelerator, model, micro_step == optimization.accumulate):
                with accelerator.autocast():
                    loss = flow_loss(model, batch).mean()
                accelerator.backward(loss / optimization.accumulate)
        gradient_norm, learning_rate = state.apply_gradients(step, {"loss": loss.detach()})
        progress.update()

        last = step == optimization.steps
        if step % optimization.log_every == 0 or last:
            row = {"loss": float(loss.detach()), "gradient_norm": float(gradient_norm), "learning_rate": learning_rate}
            state.log.row(step, **row, skipped_steps=state.guard.report(step))
            progress.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        if step % optimization.validate_every == 0 or last:
            validate(state.ema.module, settings, data, state.log, step, accelerator)
        state.save_and_stop_when_due(step, clock, stop)
    progress.close()
    state.finish()
    return network.eval()


def latent_batches(
    data: LatentData, settings: LDMSettings, accelerator: Accelerator, seed: int, done: int
) -> Iterator[FlowBatch]:
    """Training batches from step `done` on, on the accelerator's device."""
    optimization = settings.optimization
    sampler = StepSampler(
        optimization.batch_size, optimization.accumulate, accelerator.process_index, accelerator.num_processes, done
    )
    for batch in endless_loader(LatentDataset(data.train, seed), sampler, settings.workers):
        moved = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        yield make_flow_batch(moved, data, settings.flow, seed)


@torch.no_grad()
def validate(
    network: nn.Module, settings: LDMSettings, data: LatentData, log: MetricsLog, step: int, accelerator: Accelerator
) -> None:
    """The loss on held-out clips with the averaged weights; the same noise and noise levels every time."""
    network.eval()
    mine = list(enumerate(data.held_out))[accelerator.process_index :: accelerator.num_processes]
    total = torch.zeros((), device=accelerator.device)
    for first in range(0, len(mine), settings.optimization.batch_size):
        chosen = mine[first : first + settings.optimization.batch_size]
        batch = default_collate([load_entry(entry, number) for number, entry in chosen])
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.autocast():
            total += flow_loss(network, make_flow_batch(batch, data, settings.flow, seed=0)).sum()
    mean = accelerator.reduce(total, "sum") / len(data.held_out)
    log.row(step, held_out_loss=float(mean))
