"""The steps of an experiment that do not train, ready to run on fake tensors: encoding, sampling, decoding, scoring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.encoding.encode_shards import encode_pieces
from ldm.encoding.settings import BucketSettings
from ldm.experiment import Experiment
from ldm.networks.attention_backends import use_backend
from ldm.networks.conditioning import example_condition
from ldm.planning.fake_device import with_values
from ldm.planning.latents import latent_shape, text_encoder_size
from ldm.planning.training_steps import PreparedStep, new_network, rehearsed_backend
from ldm.sampling.decode import decode_in_pieces
from ldm.sampling.guidance import Guidance, guided_prediction
from ldm.sampling.schedulers import make_scheduler, sample_latents
from odvae import metrics
from odvae.evaluation.reconstruction import Evaluation
from odvae.initial_weights import make_image_vae
from odvae.running.precision import autocast
from odvae.train import random_odvae
from odvae.video.pixels import to_float
from odvae.video_vae import VideoVAE, vae_classes
from odvae.weights.pretrained import read_config

# Denoising steps that are rehearsed: enough for solvers of the third order to be past their start. It divides 1000.
DENOISING_STEPS = 4


def trained_vae(experiment: Experiment) -> VideoVAE:
    """The VAE that encodes and decodes, with any weights.

    A pretrained one is of the class and sizes in its folder; where that is not there yet, it is planned as an OD-VAE of
    `vae.model`.
    """
    settings = experiment.vae
    if settings.pretrained is not None and (Path(settings.pretrained) / "config.json").is_file():
        config = read_config(Path(settings.pretrained))
        vae: Any = vae_classes()[config["_class_name"]].from_config(config)
    elif settings.video_phase is None and settings.pretrained is None:
        vae = make_image_vae(settings.model)
    else:
        vae = random_odvae(settings.model)
    return vae.eval().requires_grad_(False)


def _held(*modules: nn.Module) -> list[Tensor]:
    return [x for module in modules for x in (*module.parameters(), *module.buffers())]


def encode_step(experiment: Experiment, bucket: BucketSettings, device: torch.device, _: Path) -> PreparedStep:
    """The encoding of a batch of clips, with the text encoder's weights beside the VAE's."""
    settings = experiment.encode
    with device:
        vae = trained_vae(experiment)
        text = torch.zeros(text_encoder_size(experiment).parameters)
    streamed = bucket.frames > settings.stream_frames
    lengths = [bucket.frames]
    if streamed:
        whole, rest = divmod(bucket.frames, settings.stream_frames)
        lengths = [settings.stream_frames] * whole + ([rest] if rest else [])
    size = 1 if streamed else settings.batch_size

    def run() -> object:
        clips = (torch.zeros((size, t, bucket.height, bucket.width, 3), dtype=torch.uint8) for t in lengths)
        with autocast(settings.precision, device):
            return encode_pieces(vae, clips, streamed)

    return PreparedStep(run, {"parameters": _held(vae), "text encoder": [text]})


def sample_step(
    experiment: Experiment, shape: tuple[int, int, int, int], device: torch.device, _: Path
) -> PreparedStep:
    """The denoising of a batch of videos in DENOISING_STEPS steps, as `ldm.pipeline` does it."""
    settings, objective = experiment.sample, experiment.ldm.objective
    with device:
        network = new_network(experiment, shape).eval().requires_grad_(False)
        use_backend(network, rehearsed_backend(settings.attention_backend))
        vae = trained_vae(experiment)
    name = settings.sampler or ("euler" if objective.prediction == "flow" else "ddim")
    scheduler = with_values(make_scheduler)(name, objective)
    guidance = Guidance(settings.guidance_scale, settings.guidance_interval, settings.guidance_rescale)
    b = settings.batch_size
    with device:
        noise = torch.zeros(b, *shape)
        condition = example_condition(network, b, shape)
        empty = condition if condition.supports_guidance else None

    def run() -> object:
        with autocast(settings.precision, device):
            predict = guided_prediction(network, condition, empty, guidance)
            return sample_latents(predict, noise, scheduler, objective, DENOISING_STEPS, guidance)

    return PreparedStep(run, {"parameters": _held(network), "VAE": _held(vae)})


def decode_step(
    experiment: Experiment, shape: tuple[int, int, int, int], device: torch.device, _: Path
) -> PreparedStep:
    """The decoding of one sampled video in pieces; each leaves the GPU before the next."""
    with device:
        vae = trained_vae(experiment)
        network = new_network(experiment, shape).eval().requires_grad_(False)
        latents = torch.zeros(1, *shape)
    mean, std = [0.0] * shape[0], [1.0] * shape[0]

    def run() -> object:
        with autocast(experiment.sample.precision, device):
            for piece in decode_in_pieces(vae, latents, mean, std):
                last = piece
        return last

    return PreparedStep(run, {"parameters": _held(vae), "network": _held(network)})


def scoring_step(experiment: Experiment, device: torch.device, _: Path) -> PreparedStep:
    """The reconstruction of a batch of held-out clips by the VAE, with PSNR and LPIPS (SSIM is computed on the CPU)."""
    settings = experiment.eval_vae
    data = settings.clip_settings(experiment.data)
    with device:
        vae = trained_vae(experiment)
        if settings.lpips is not None:  # it is loaded once a process
            metrics.load_lpips(settings.lpips.network, settings.lpips.weights, device)
    evaluation = Evaluation(settings, data, vae, experiment.seed)
    count = settings.batch_size

    @torch.no_grad()
    def run() -> object:
        clips = torch.zeros((count, data.frames, data.height, data.width, 3), dtype=torch.uint8, device=device)
        videos = to_float(clips)
        found, moments, _ = evaluation.reconstruct(videos, list(range(count)))
        scores = [metrics.psnr(found[:1], videos[:1])]
        if settings.lpips is not None:
            scores.append(metrics.lpips(found[:1], videos[:1], settings.lpips.network, settings.lpips.weights))
        return scores, moments

    return PreparedStep(run, {"parameters": _held(vae)})


def shape_of_latents(experiment: Experiment, bucket: BucketSettings) -> tuple[int, int, int, int]:
    """(c, k, h, w) of a bucket's latents."""
    with torch.device("meta"):
        vae = trained_vae(experiment)
    return latent_shape(bucket.frames, bucket.height, bucket.width, vae)
