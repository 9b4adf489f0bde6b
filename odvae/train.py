"""Training of the VAE: first as an image VAE on single frames, then, inflated, as OD-VAE on clips.

`train_vae` says what happens in which order; `fit` is the one loop both phases go through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from diffusers import AutoencoderKL
from einops import rearrange
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from odvae.frame_vae import FrameVAE
from odvae.initialization import Init, initialize_from_scratch
from odvae.inputs import SPACE_FACTOR, TIME_FACTOR
from odvae.layers import keep_channels_last
from odvae.losses import LossSettings, vae_loss
from odvae.metrics import psnr, ssim
from odvae.model import ODVAE
from odvae.shared.checkpoints import StopRequest, begin_stage
from odvae.shared.clips import ClipDataset, DataSettings, StepSampler, VideoSet, check_frames, endless_loader, load_clip
from odvae.shared.errors import InputError
from odvae.shared.optimization import OptimizationSettings, Tracker, check_finite, gradients_synced_at
from odvae.shared.pictures import strip
from odvae.shared.pixels import to_float, to_uint8
from odvae.shared.run_folder import StageClock, install_folder
from odvae.shared.seeds import normal_per_sample
from odvae.shared.settings import Settings
from odvae.shared.tracking import MetricsLog, progress_bar, progress_over
from odvae.shared.training import TrainingState
from odvae.statistics import ChannelSums


class ModelSettings(Settings):
    variant: Literal[1, 2, 3, 4] = 4
    """Which convolutions see time (paper, section 3.2)."""
    block_out_channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    """Widths of the four levels, from full resolution down."""
    layers_per_block: int = Field(2, ge=1)
    """Residual blocks a level in the encoder; the decoder has one more."""
    latent_channels: int = Field(4, ge=1)
    """Channels of the latents."""
    norm_num_groups: int = Field(32, ge=1)
    """Groups of every group norm."""
    norm: Literal["frame", "clip"] = "frame"
    """Statistics of each frame (causal, streams exactly) or of the whole clip (the released checkpoints' function)."""
    temporal_upsample: Literal["nearest", "trilinear"] = "nearest"
    """How the decoder lengthens time: causal, or as released."""

    @model_validator(mode="after")
    def _widths_fit_the_groups(self) -> ModelSettings:
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels has {width}, which norm_num_groups={self.norm_num_groups} does not divide"
                )
        return self


class ImagePhaseSettings(OptimizationSettings):
    images_per_clip: int = Field(1, ge=1)
    """Frames taken from each decoded clip, spread over it; a micro-step sees batch_size * images_per_clip images.
    More than one saves decoding and costs variety: frames of one clip are nearly the same picture."""


class VideoPhaseSettings(OptimizationSettings):
    frames: int | None = Field(None, ge=5)
    """Frames a training clip, 4k+1; null: data.frames. The model is convolutional in time, so it may train on shorter
    clips than it is used for (the paper trains on 25 and is measured on 33)."""

    @field_validator("frames")
    @classmethod
    def _frames_are_4k_plus_1(cls, frames: int | None) -> int | None:
        return frames if frames is None else check_frames(frames)


class VAESettings(Settings):
    model: ModelSettings = ModelSettings()
    """The network."""
    init: Init = "tail"
    """How the video VAE begins: from the image VAE by tail or average initialisation, or random."""
    image_vae: str | None = None
    """Folder or hub name of the image VAE (diffusers AutoencoderKL) to begin from; null: the image phase trains one."""
    image_phase: ImagePhaseSettings | None = ImagePhaseSettings()
    """Training as an image VAE, before; null with image_vae, or with init=random."""
    video_phase: VideoPhaseSettings = VideoPhaseSettings()
    """Training on clips."""
    loss: LossSettings = LossSettings()
    """What is minimised, in both phases."""
    validation_clips: int = Field(16, ge=1)
    """Held-out clips that a validation reconstructs."""
    statistics_clips: int = Field(256, ge=2)
    """Training clips over which the latents' mean and standard deviation are measured at the end."""

    @model_validator(mode="after")
    def _there_is_an_image_vae_to_begin_from(self) -> VAESettings:
        if self.init == "random" and (self.image_vae or self.image_phase):
            raise ValueError("init=random takes nothing from an image VAE; set image_vae and image_phase to null")
        if self.init != "random" and (self.image_vae is None) == (self.image_phase is None):
            raise ValueError(f"init={self.init} needs exactly one of image_vae and image_phase")
        return self


@dataclass(frozen=True)
class VAERun:
    """What both phases of one run share."""

    settings: VAESettings
    data: DataSettings
    videos: VideoSet
    folder: Path
    seed: int
    tracker: Tracker
    clock: StageClock
    stop: StopRequest


def train_vae(
    settings: VAESettings, data: DataSettings, videos: VideoSet, folder: Path, seed: int, tracker: Tracker = "none"
) -> None:
    """Train the VAE into `folder` (a diffusers model folder), or go on where an earlier run of it stopped.

    Raises InputError when the folder holds a run with other settings. Ctrl-C and SIGTERM save a checkpoint and end
    the process with status 130 or 143.
    """
    state = PartialState()
    clock, stop = StageClock(folder), StopRequest()
    if begin_stage(folder, {"seed": seed, "vae": settings, "data": data}) and clock.finished:
        return
    run = VAERun(settings, data, videos, folder, seed, tracker, clock, stop)
    image_vae = _image_vae_to_begin_from(run)
    torch.manual_seed(seed)  # for the weights that no image VAE gives
    if image_vae is None:
        vae = ODVAE(**settings.model.model_dump())
        initialize_from_scratch(vae)
    else:
        mode = {"norm": settings.model.norm, "temporal_upsample": settings.model.temporal_upsample}
        vae = ODVAE.from_image_vae(image_vae, settings.model.variant, settings.init, **mode)
    vae = fit(vae, "video VAE", settings.video_phase, run, folder)

    mean, std = latent_statistics(vae, videos, settings.statistics_clips, state.device)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    if state.is_main_process:
        with install_folder(folder) as aside:
            vae.save_pretrained(aside)
        run.clock.save(finished=True)
    state.wait_for_everyone()


def _image_vae_to_begin_from(run: VAERun) -> AutoencoderKL | None:
    """The image VAE: none for random initialisation, given, trained by an earlier run, or trained now."""
    settings = run.settings
    if settings.init == "random":
        return None
    if settings.image_vae is not None:
        return load_image_vae(settings.image_vae, settings.model)
    folder = run.folder / "image_vae"
    if (folder / "config.json").exists():
        return AutoencoderKL.from_pretrained(folder)
    assert settings.image_phase is not None  # the settings' validator saw to it
    torch.manual_seed(run.seed)
    image_vae = FrameVAE(make_image_vae(settings.model))
    fit(image_vae, "image VAE", settings.image_phase, run, folder)
    if PartialState().is_main_process:
        with install_folder(folder) as aside:
            image_vae.save_pretrained(aside)
    PartialState().wait_for_everyone()
    return image_vae.image_vae


def make_image_vae(model: ModelSettings) -> AutoencoderKL:
    """Stable Diffusion's image VAE in the sizes of `model`, with random weights."""
    image_vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_num_groups,
    )
    initialize_from_scratch(image_vae)
    return image_vae


def load_image_vae(name: str, model: ModelSettings) -> AutoencoderKL:
    """An AutoencoderKL from a folder or hub name, whose sizes must be those of `model`."""
    try:
        image_vae = AutoencoderKL.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"vae.image_vae={name!r} cannot be loaded as an AutoencoderKL: {error}") from None
    for key in ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups"):
        found, asked = image_vae.config[key], getattr(model, key)
        if (tuple(found) if isinstance(found, list) else found) != asked:
            raise InputError(f"vae.model.{key}={asked}, but the image VAE {name} has {found}")
    return image_vae


def fit(
    network: ODVAE | FrameVAE,
    name: str,
    optimization: ImagePhaseSettings | VideoPhaseSettings,
    run: VAERun,
    folder: Path,
) -> ODVAE | FrameVAE:
    """Train a network for `optimization.steps` steps, on single frames or on clips as its settings say.

    Returns it with its averaged (EMA) weights. `step` counts completed optimiser steps; data, noise and learning rate
    are functions of it, so a run that is killed anywhere and started again ends in the same weights.
    """
    keep_channels_last(network)
    state = TrainingState(network, optimization, folder, run.tracker, f"{run.folder.parent.name} {name}")
    accelerator, model, done = state.accelerator, state.model, state.done
    batches = video_batches(run, optimization, accelerator, done)
    progress = progress_bar(f"training the {name}", done, optimization.steps)

    for step in range(done + 1, optimization.steps + 1):
        for micro_step in range(1, optimization.accumulate + 1):
            video, numbers = next(batches)
            noise = posterior_noise(video, numbers, network, run.seed)
            with gradients_synced_at(accelerator, model, micro_step == optimization.accumulate):
                with accelerator.autocast():
                    reconstruction, mean, logvar = model(video, noise)
                loss, parts = vae_loss(reconstruction, video, mean, logvar, run.settings.loss)
                accelerator.backward(loss / optimization.accumulate)
        gradient_norm, learning_rate = state.apply_gradients(step)
        progress.update()

        last = step == optimization.steps
        if step % optimization.log_every == 0 or last:
            row = {key: float(value) for key, value in parts.items()}
            row |= {"gradient_norm": float(gradient_norm), "learning_rate": learning_rate}
            check_finite(row, step, folder)
            state.log.row(step, **row)
            progress.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        if step % optimization.validate_every == 0 or last:
            with state.ema.in_network():
                validate(network, run, state.log, step, accelerator)
        state.save_and_stop_when_due(step, run.clock, run.stop)
    progress.close()
    state.finish()
    return network.eval()


def video_batches(
    run: VAERun, optimization: ImagePhaseSettings | VideoPhaseSettings, accelerator: Accelerator, done: int
) -> Iterator[tuple[Tensor, list[int]]]:
    """Training batches from step `done` on: (video in [-1, 1], one number a sample from which its noise follows).

    In the image phase a video is one frame.
    """
    data, images = run.data, isinstance(optimization, ImagePhaseSettings)
    if images:  # frames spread over the clip
        frames = min(optimization.images_per_clip, data.frames)
        data = data.model_copy(update={"frames": frames, "stride": max(1, data.span // frames)})
    elif optimization.frames is not None:
        data = data.model_copy(update={"frames": optimization.frames})
    sampler = StepSampler(
        optimization.batch_size, optimization.accumulate, accelerator.process_index, accelerator.num_processes, done
    )
    for batch in endless_loader(ClipDataset(run.videos.train, data, run.seed), sampler, data.workers):
        video, numbers = batch["video"].to(accelerator.device, non_blocking=True), batch["number"].tolist()
        if images:
            numbers = [number * data.frames + i for number in numbers for i in range(data.frames)]
            video = rearrange(video, "b t h w c -> (b t) 1 h w c")
        yield to_float(video), numbers


def posterior_noise(video: Tensor, numbers: list[int], network: ODVAE | FrameVAE, seed: int) -> Tensor:
    """The noise that draws latents from the posterior, (b, c, 1 + k, h/8, w/8), by sample number."""
    _, _, t, h, w = video.shape
    frames = (t - 1) // TIME_FACTOR + 1
    shape = (network.config.latent_channels, frames, h // SPACE_FACTOR, w // SPACE_FACTOR)
    return normal_per_sample(shape, seed, "posterior", numbers, video.device)


@torch.no_grad()
def validate(network: nn.Module, run: VAERun, log: MetricsLog, step: int, accelerator: Accelerator) -> None:
    """PSNR and SSIM of held-out clips, each rank its share, and a strip: real above reconstructed."""
    network.eval()
    chosen = run.videos.held_out[: run.settings.validation_clips]
    scores, pairs = [], []
    for sample in chosen[accelerator.process_index :: accelerator.num_processes]:
        video = to_float(load_clip(sample, run.data)).unsqueeze(0).to(accelerator.device)
        with accelerator.autocast():
            reconstruction = network(video)[0].float().clamp(-1, 1)
        scores.append(torch.stack([psnr(reconstruction, video)[0], ssim(reconstruction, video)[0]]))
        if len(pairs) < 6:
            pairs += [to_uint8(video[0]), to_uint8(reconstruction[0])]
    total = torch.stack(scores).sum(0).float() if scores else torch.zeros(2)
    mean = accelerator.reduce(total.to(accelerator.device), "sum") / len(chosen)
    log.row(step, validation_psnr=float(mean[0]), validation_ssim=float(mean[1]))
    log.picture(step, "strips", strip(pairs))


@torch.no_grad()
def latent_statistics(
    vae: ODVAE, videos: VideoSet, clips: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over training clips, posterior noise included, in float64."""
    sums = ChannelSums()
    vae.to(device)
    for sample in progress_over(videos.train[:clips], "latent statistics"):
        video = to_float(load_clip(sample, videos.data)).unsqueeze(0).to(device)
        posterior = vae.encode(video).latent_dist
        sums.add(posterior.mean[0], posterior.std[0])
    return sums.mean_and_std()
