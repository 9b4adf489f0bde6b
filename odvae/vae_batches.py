"""Training batches of the VAE: clips or single frames, with the seeds of their posterior noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import torch
from einops import rearrange
from torch import Tensor

from odvae.architecture.frame_counts import latent_frames
from odvae.clips.dataset import ClipDataset
from odvae.clips.loader import endless_loader
from odvae.clips.samplers import BatchPlan, StepSampler
from odvae.clips.video_set import VideoSet
from odvae.running.errors import InputError
from odvae.running.seeds import derive_seed, normal_per_sample
from odvae.settings import ImagePhaseSettings, PhaseSettings
from odvae.training.optimization import sample_order
from odvae.video.pixels import to_float
from odvae.video_vae import VideoVAE


@dataclass(frozen=True)
class Batch:
    """Videos (b, 3, t, h, w) in [-1, 1] of one micro-step.

    The posterior noise of each video is a function of the run's seed, `noise_name` and the video's sample number.
    """

    video: Tensor
    noise_name: str
    sample_numbers: list[int]

    def latent_shape(self, network: VideoVAE) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a video's latents, (c, 1 + k, h/s, w/s)."""
        _, _, t, h, w = self.video.shape
        return (
            network.config.latent_channels,
            latent_frames(t, network.temporal_compression_ratio),
            h // network.spatial_compression_ratio,
            w // network.spatial_compression_ratio,
        )

    def posterior_noise(self, network: VideoVAE, seed: int) -> Tensor:
        """Standard normal noise for sampling latents from the posterior, (b, c, 1 + k, h/s, w/s)."""
        shape = self.latent_shape(network)
        return normal_per_sample(shape, seed, self.noise_name, self.sample_numbers, self.video.device)


@dataclass(frozen=True)
class Batches:
    """The batches of one rank in a training phase. The samples of a step are a function of the step's number."""

    videos: VideoSet
    optimization: PhaseSettings
    plan: BatchPlan
    device: torch.device
    seed: int

    def from_step(self, done: int) -> Iterator[Batch]:
        """Endless batches for the steps after `done` completed ones.

        In the image phase, and in every `image_every`-th step of the video phase, a video is a single frame.
        """
        phase = self.optimization
        if isinstance(phase, ImagePhaseSettings):
            yield from self.images(done, self.plan.batch_size, phase.images_per_clip)
            return
        every = phase.image_every
        if every is None:
            yield from self.clips(done, phase.frames)
            return
        clips = self.clips(done - done // every, phase.frames)
        parts = self.plan.ranks * self.plan.gradient_accumulation_steps
        if phase.images_per_step % parts:
            raise InputError(
                f"vae.video_phase.images_per_step={phase.images_per_step} is not divisible by "
                f"{self.plan.ranks} ranks times {self.plan.gradient_accumulation_steps} micro-steps"
            )
        images = self.images(done // every, phase.images_per_step // parts, images_per_clip=1)
        for step in count(done + 1):
            for _ in range(self.plan.gradient_accumulation_steps):
                yield next(images if step % every == 0 else clips)

    def clips(self, done: int, frames: int | None) -> Iterator[Batch]:
        """Batches of clips, after `done` steps on clips; `frames` None: clips of `data.frames` frames."""
        data = self.videos.data
        if frames is not None:
            data = data.model_copy(update={"frames": frames})
        order = sample_order(self.optimization, self.plan)
        clips = ClipDataset(self.videos.train, data, self.seed, self.videos.failed, order)
        for batch in endless_loader(clips, StepSampler(self.plan, done)):
            video = batch["video"].to(self.device, non_blocking=True)
            yield Batch(to_float(video), "posterior", batch["number"].tolist())

    def images(self, done: int, batch_size: int, images_per_clip: int) -> Iterator[Batch]:
        """Batches of single frames, after `done` steps on single frames.

        Several frames of one clip are spread evenly over it. With one frame per clip, the images in the shards and
        videos shorter than a clip are used too.
        """
        data = self.videos.data
        frames = min(images_per_clip, data.frames)
        samples = self.videos.not_held_out if frames == 1 else self.videos.train
        data = data.model_copy(update={"frames": frames, "stride": max(1, data.span // frames)})
        plan = replace(self.plan, batch_size=batch_size)
        order = sample_order(self.optimization, plan)
        clips = ClipDataset(samples, data, derive_seed(self.seed, "images"), self.videos.failed, order)
        for batch in endless_loader(clips, StepSampler(plan, done)):
            video = batch["video"].to(self.device, non_blocking=True)
            numbers = [number * frames + i for number in batch["number"].tolist() for i in range(frames)]
            yield Batch(to_float(rearrange(video, "b t h w c -> (b t) 1 h w c")), "image posterior", numbers)
