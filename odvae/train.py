"""Training of the VAE: first as an image VAE on single frames, then, inflated, as OD-VAE on clips.

`train_vae` says what happens in which order; `fit` is the one loop both phases go through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from einops import rearrange
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from odvae.adversary import Adversary
from odvae.frame_vae import FrameVAE
from odvae.initialization import Init, initialize_from_scratch
from odvae.layers import keep_channels_last
from odvae.loading import VideoVAE
from odvae.losses import LossSettings, fidelity_loss, kl_per_pixel, lpips_per_frame
from odvae.metrics import psnr, ssim
from odvae.model import ODVAE
from odvae.perceptual import LPIPS, load_lpips
from odvae.shared.checkpoints import StopRequest, begin_stage
from odvae.shared.clips import ClipDataset, DataSettings, StepSampler, VideoSet, check_frames, endless_loader, load_clip
from odvae.shared.errors import InputError
from odvae.shared.optimization import OptimizationSettings, Tracker, gradients_synced_at
from odvae.shared.pictures import strip
from odvae.shared.pixels import to_float, to_uint8
from odvae.shared.run_folder import StageClock, install_folder
from odvae.shared.seeds import derive_seed, normal_per_sample
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
    image_every: int | None = Field(None, ge=2)
    """Every such step trains on single frames instead of clips, to keep the model a good image VAE; null: none."""
    images_per_step: int = Field(8, ge=1)
    """Single frames a micro-step of those steps sees."""

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
    begin_from: str | None = None
    """Folder or hub name of an OD-VAE whose weights training goes on from (the paper's second phase), or a file that
    Open-Sora-Plan published. `model` says which function they get."""
    image_phase: ImagePhaseSettings | None = ImagePhaseSettings()
    """Training as an image VAE, before; null with image_vae or begin_from, or with init=random."""
    video_phase: VideoPhaseSettings | None = VideoPhaseSettings()
    """Training on clips; null: the image VAE itself is the result, which works frame by frame and does not compress
    time (the baseline of the paper's generation study)."""
    loss: LossSettings = LossSettings()
    """What is minimised, in both phases."""
    validation_clips: int = Field(16, ge=1)
    """Held-out clips that a validation reconstructs."""
    statistics_clips: int = Field(256, ge=2)
    """Training clips over which the latents' mean and standard deviation are measured at the end."""

    @model_validator(mode="after")
    def _there_is_one_place_to_begin_from(self) -> VAESettings:
        sources = {"image_vae": self.image_vae, "begin_from": self.begin_from, "image_phase": self.image_phase}
        given = [name for name, source in sources.items() if source is not None]
        if self.init == "random" and given:
            raise ValueError(f"init=random begins from nothing; set to null: {', '.join(given)}")
        if self.init != "random" and len(given) != 1:
            raise ValueError(f"init={self.init} needs exactly one of {', '.join(sources)}; found {given or 'none'}")
        if self.begin_from is not None and self.video_phase is None:
            raise ValueError("begin_from names a video VAE; video_phase=null makes an image VAE")
        if self.init == "random" and self.video_phase is None:
            raise ValueError("init=random with video_phase=null leaves nothing to train")
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
    if state.is_main_process:
        print(f"loss: {settings.loss.describe()}", flush=True)
    vae = make_vae(run)
    mean, std = latent_statistics(vae, videos, settings.statistics_clips, state.device)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    if state.is_main_process:
        with install_folder(folder) as aside:
            vae.save_pretrained(aside)
        run.clock.save(finished=True)
    state.wait_for_everyone()


def make_vae(run: VAERun) -> VideoVAE:
    """Both phases: the image VAE, then the video VAE inflated from it and trained on clips."""
    settings = run.settings
    if settings.video_phase is None:
        return image_vae_to_begin_from(run)
    return fit(video_vae_to_begin_from(run), "video VAE", settings.video_phase, run, run.folder)


def video_vae_to_begin_from(run: VAERun) -> ODVAE:
    """The video VAE before its training: inflated from an image VAE, from another OD-VAE, or random."""
    settings, model = run.settings, run.settings.model
    if settings.begin_from is not None:
        return load_video_vae(settings.begin_from, model)
    if settings.init == "random":
        torch.manual_seed(run.seed)
        vae = ODVAE(**model.model_dump())
        initialize_from_scratch(vae)
        return vae
    mode = {"norm": model.norm, "temporal_upsample": model.temporal_upsample}
    return ODVAE.from_image_vae(image_vae_to_begin_from(run), model.variant, settings.init, **mode)


def image_vae_to_begin_from(run: VAERun) -> FrameVAE:
    """The image VAE: given, trained by an earlier run, or trained now."""
    settings = run.settings
    if settings.image_vae is not None:
        return load_image_vae(settings.image_vae, settings.model)
    folder = run.folder / "image_vae"
    if (folder / "config.json").exists():
        return FrameVAE.from_pretrained(folder)
    assert settings.image_phase is not None  # the settings' validator saw to it
    torch.manual_seed(run.seed)
    image_vae = fit(make_image_vae(settings.model), "image VAE", settings.image_phase, run, folder)
    if PartialState().is_main_process:
        with install_folder(folder) as aside:
            image_vae.save_pretrained(aside)
    PartialState().wait_for_everyone()
    return image_vae


def make_image_vae(model: ModelSettings) -> FrameVAE:
    """Stable Diffusion's image VAE in the sizes of `model`, with random weights."""
    image_vae = FrameVAE(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_num_groups,
    )
    initialize_from_scratch(image_vae)
    return image_vae


def load_image_vae(name: str, model: ModelSettings) -> FrameVAE:
    """An AutoencoderKL from a folder or hub name, its own or a whole pipeline's; its sizes must be those of `model`."""
    try:
        try:
            image_vae = FrameVAE.from_pretrained(name)
        except OSError:  # no model there; a pipeline (Stable Diffusion's) has one in a folder of its own
            image_vae = FrameVAE.from_pretrained(name, subfolder="vae")
    except (OSError, ValueError) as error:
        raise InputError(f"vae.image_vae={name!r} cannot be loaded as an AutoencoderKL: {error}") from None
    _check_sizes(image_vae, model, f"the image VAE {name}")
    return image_vae


def load_video_vae(name: str, model: ModelSettings) -> ODVAE:
    """An OD-VAE with the weights of another, from a folder, hub name or published file, and the function of `model`."""
    path = Path(name)
    try:
        ours = (path / "config.json").is_file() or not path.exists()
        source = ODVAE.from_pretrained(name) if ours else ODVAE.from_opensora_plan(path)
    except (OSError, ValueError) as error:
        raise InputError(f"vae.begin_from={name!r} cannot be loaded as an OD-VAE: {error}") from None
    _check_sizes(source, model, f"the OD-VAE {name}", "variant")
    if source.config.temporal_resampling != "joint":
        raise InputError(f"vae.begin_from={name!r} resamples time in layers of its own (v1.1.0), which is not trained")
    vae = ODVAE(**model.model_dump())
    vae.load_state_dict(source.state_dict())
    return vae


def _check_sizes(vae: VideoVAE, model: ModelSettings, name: str, *more: str) -> None:
    for key in ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", *more):
        found, asked = vae.config[key], getattr(model, key)
        if (tuple(found) if isinstance(found, list) else found) != asked:
            raise InputError(f"vae.model.{key}={asked}, but {name} has {found}")


def fit(
    network: VideoVAE,
    name: str,
    optimization: ImagePhaseSettings | VideoPhaseSettings,
    run: VAERun,
    folder: Path,
) -> VideoVAE:
    """Train a network for `optimization.steps` steps, on single frames or on clips as its settings say.

    Returns it with its averaged (EMA) weights. `step` counts completed optimiser steps; data, noise and learning rate
    are functions of it, so a run that is killed anywhere and started again ends in the same weights.
    """
    prepare_network(network, optimization)
    state = TrainingState(network, optimization, folder, run.tracker, f"{run.folder.parent.name} {name}")
    accelerator, model = state.accelerator, state.model
    objective = Objective(run.settings.loss, network, optimization, accelerator)
    done = state.resume()
    batches = training_batches(run, optimization, accelerator, done)
    progress = progress_bar(f"training the {name}", done, optimization.steps)

    for step in range(done + 1, optimization.steps + 1):
        for micro_step in range(1, optimization.accumulate + 1):
            video, noise_name, numbers = next(batches)
            noise = posterior_noise(video, network, run.seed, noise_name, numbers)
            sync = micro_step == optimization.accumulate
            with gradients_synced_at(accelerator, model, sync):
                with accelerator.autocast():
                    reconstruction, mean, logvar = model(video, noise)
                loss, parts = objective(reconstruction, video, mean, logvar, step)
                accelerator.backward(loss / optimization.accumulate)
            parts |= objective.train_adversary(reconstruction, video, step, sync)
        gradient_norm, learning_rate = state.apply_gradients(step, parts)
        objective.apply_gradients(step)
        progress.update()

        last = step == optimization.steps
        if step % optimization.log_every == 0 or last:
            row = {key: float(value) for key, value in parts.items()}
            row |= {"gradient_norm": float(gradient_norm), "learning_rate": learning_rate}
            state.log.row(step, **row, skipped_steps=state.guard.report(step))
            progress.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        if step % optimization.validate_every == 0 or last:
            validate(state.ema.module, run, objective.perceptual, state.log, step, accelerator)
        state.save_and_stop_when_due(step, run.clock, run.stop)
    progress.close()
    state.finish()
    return network.eval()


def prepare_network(network: VideoVAE, optimization: OptimizationSettings) -> None:
    """Memory layout, checkpointing and compilation, as the settings say; in place."""
    keep_channels_last(network)
    if optimization.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if optimization.compile:
        # By blocks, and not the last convolution: the adversary asks for the gradient there alone, and a compiled
        # network would answer with a whole backward pass. Blocks are the same code in other sizes, compiled for each.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for half, blocks in ((network.encoder, "down_blocks"), (network.decoder, "up_blocks")):
            for block in (*getattr(half, blocks), half.mid_block):
                block.compile(dynamic=False)


class Objective:
    """What a phase minimises: fidelity + KL, and the adversarial term once it has begun.

    Make it before the checkpoint is loaded: the adversary is part of it.
    """

    def __init__(
        self,
        settings: LossSettings,
        network: VideoVAE,
        optimization: OptimizationSettings,
        accelerator: Accelerator,
    ) -> None:
        self.settings, self.accelerator = settings, accelerator
        self.perceptual: LPIPS | None = None
        self.adversary: Adversary | None = None
        if settings.lpips is not None:
            with accelerator.main_process_first():  # which downloads the weights
                self.perceptual = load_lpips(settings.lpips.network, settings.lpips.weights, accelerator.device)
        if settings.adversary is not None:
            last_weight = network.decoder.conv_out.weight
            self.adversary = Adversary(settings.adversary, optimization, accelerator, last_weight)

    def __call__(
        self, reconstruction: Tensor, video: Tensor, mean: Tensor, logvar: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss with the objective's gradient, and the terms by name (detached) for the log.

        All that looks at pixels is differentiated by them first. So LPIPS and discriminator are run back through once,
        whatever is measured on the way, and their activations are gone before the decoder's backward pass begins.
        """
        pixels = reconstruction.detach().float().requires_grad_()
        with self.accelerator.autocast():
            fidelity, parts = fidelity_loss(pixels, video, self.settings, self.perceptual)
        (gradient,) = torch.autograd.grad(fidelity, pixels)
        if self.adversary is not None and self.adversary.begun(step):
            with self.accelerator.autocast():
                adversarial = self.adversary.deceive(pixels)
            (adversarial_gradient,) = torch.autograd.grad(adversarial, pixels)
            gradient = self.adversary.weigh(reconstruction, gradient, adversarial_gradient)
            parts |= {"adversarial": adversarial.detach(), "balance": self.adversary.state.balance.clone()}
        divergence = kl_per_pixel(mean, logvar, video)
        parts = {"loss": (fidelity + self.settings.kl * divergence).detach(), **parts, "kl": divergence.detach()}
        return (reconstruction.float() * gradient).sum() + self.settings.kl * divergence, parts

    def train_adversary(self, reconstruction: Tensor, video: Tensor, step: int, sync: bool) -> dict[str, Tensor]:
        """The discriminator's part of a micro-step, where it has begun; its numbers for the log."""
        if self.adversary is None or not self.adversary.begun(step):
            return {}
        return self.adversary.learn(video, reconstruction, sync)

    def apply_gradients(self, step: int) -> None:
        """The discriminator's part of an optimiser step."""
        if self.adversary is not None and self.adversary.begun(step):
            self.adversary.apply_gradients(step)


def training_batches(
    run: VAERun, optimization: ImagePhaseSettings | VideoPhaseSettings, accelerator: Accelerator, done: int
) -> Iterator[tuple[Tensor, str, list[int]]]:
    """Batches from step `done` on: (video in [-1, 1], and the name and numbers from which its noise follows).

    In the image phase, and in every `image_every`-th step of the video phase, a video is one frame.
    """
    if isinstance(optimization, ImagePhaseSettings):
        yield from image_batches(run, optimization, accelerator, done, optimization.images_per_clip)
    every = optimization.image_every
    images_done = done // every if every else 0
    clips = clip_batches(run, optimization, accelerator, done - images_done)
    if every is None:
        yield from clips
    single = optimization.model_copy(update={"batch_size": optimization.images_per_step})
    images = image_batches(run, single, accelerator, images_done, images_per_clip=1)
    for step in count(done + 1):
        for _ in range(optimization.accumulate):
            yield next(images if step % every == 0 else clips)


def clip_batches(
    run: VAERun, optimization: VideoPhaseSettings, accelerator: Accelerator, done: int
) -> Iterator[tuple[Tensor, str, list[int]]]:
    """Clips (b, 3, t, h, w), from their step `done` on."""
    data = run.data
    if optimization.frames is not None:
        data = data.model_copy(update={"frames": optimization.frames})
    clips = ClipDataset(run.videos.train, data, run.seed)
    for batch in endless_loader(clips, sampler_of(optimization, accelerator, done), data.workers):
        video = batch["video"].to(accelerator.device, non_blocking=True)
        yield to_float(video), "posterior", batch["number"].tolist()


def image_batches(
    run: VAERun, optimization: OptimizationSettings, accelerator: Accelerator, done: int, images_per_clip: int
) -> Iterator[tuple[Tensor, str, list[int]]]:
    """Single frames (b, 3, 1, h, w), from their step `done` on; several of a clip are spread over it."""
    frames = min(images_per_clip, run.data.frames)
    data = run.data.model_copy(update={"frames": frames, "stride": max(1, run.data.span // frames)})
    clips = ClipDataset(run.videos.train, data, derive_seed(run.seed, "images"))
    for batch in endless_loader(clips, sampler_of(optimization, accelerator, done), data.workers):
        video = batch["video"].to(accelerator.device, non_blocking=True)
        numbers = [number * frames + i for number in batch["number"].tolist() for i in range(frames)]
        yield to_float(rearrange(video, "b t h w c -> (b t) 1 h w c")), "image posterior", numbers


def sampler_of(optimization: OptimizationSettings, accelerator: Accelerator, done: int) -> StepSampler:
    """The sample numbers of this rank, from step `done` on."""
    ranks = (accelerator.process_index, accelerator.num_processes)
    return StepSampler(optimization.batch_size, optimization.accumulate, *ranks, done)


def posterior_noise(video: Tensor, network: VideoVAE, seed: int, name: str, numbers: list[int]) -> Tensor:
    """The noise that draws latents from the posterior, (b, c, 1 + k, h/8, w/8), by sample number."""
    _, _, t, h, w = video.shape
    frames = (t - 1) // network.time_factor + 1
    shape = (network.config.latent_channels, frames, h // network.space_factor, w // network.space_factor)
    return normal_per_sample(shape, seed, name, numbers, video.device)


@torch.no_grad()
def validate(
    network: nn.Module, run: VAERun, perceptual: LPIPS | None, log: MetricsLog, step: int, accelerator: Accelerator
) -> None:
    """PSNR, SSIM and (where training has it) LPIPS of held-out clips, each rank its share, and a strip."""
    network.eval()
    chosen = run.videos.held_out[: run.settings.validation_clips]
    names = ["psnr", "ssim", *(["lpips"] if perceptual else [])]
    total, pairs = torch.zeros(len(names), device=accelerator.device), []
    for sample in chosen[accelerator.process_index :: accelerator.num_processes]:
        video = to_float(load_clip(sample, run.data)).unsqueeze(0).to(accelerator.device)
        with accelerator.autocast():
            reconstruction = network(video)[0].float().clamp(-1, 1)
        scores = [psnr(reconstruction, video)[0], ssim(reconstruction, video)[0]]
        if perceptual is not None:
            scores.append(lpips_per_frame(perceptual, reconstruction, video))
        total += torch.stack([score.to(total) for score in scores])
        if len(pairs) < 6:
            pairs += [to_uint8(video[0]), to_uint8(reconstruction[0])]
    mean = (accelerator.reduce(total, "sum") / len(chosen)).tolist()
    log.row(step, **{f"validation_{name}": value for name, value in zip(names, mean, strict=True)})
    log.picture(step, "strips", strip(pairs))


@torch.no_grad()
def latent_statistics(
    vae: VideoVAE, videos: VideoSet, clips: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over training clips, posterior noise included, in float64."""
    sums = ChannelSums()
    vae.to(device)
    for sample in progress_over(videos.train[:clips], "latent statistics"):
        video = to_float(load_clip(sample, videos.data)).unsqueeze(0).to(device)
        posterior = vae.encode(video).latent_dist
        sums.add(posterior.mean[0], posterior.std[0])
    return sums.mean_and_std()
