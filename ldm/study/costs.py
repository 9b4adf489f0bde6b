"""Costs of a study's runs, measured in separate processes: FLOPs and speed of a VAE, speed and memory of a training."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from ldm.latents.manifest import load_manifest
from ldm.networks.network import Network, predict
from ldm.train import new_network
from ldm.training.batch_sizes import batch_sizes
from ldm.training.diffusion_batches import Batch, LatentData, per_sample_mse
from ldm.training.settings import LDMSettings
from ldm.training.step import apply_model_options
from ldm.training.throughput import forward_flops
from odvae.clips.samplers import BatchPlan
from odvae.clips.settings import DataSettings
from odvae.measuring import PeakMemory, count_flops, now
from odvae.model import ODVAE
from odvae.per_frame import PerFrameVAE
from odvae.running.seeds import torch_generator
from odvae.training.optimization import make_accelerator, make_optimizer
from odvae.video_vae import VideoVAE, load_vae


def vae_cost(folder: Path, data: DataSettings, device: torch.device) -> dict:
    """Parameters, and FLOPs and frames per second of encoding and decoding one clip of the experiment's size."""
    vae = load_vae(folder).to(device)
    assert isinstance(vae, ODVAE | PerFrameVAE)  # a study trains no others
    shape = (1, 3, data.frames, data.height, data.width)
    video = torch.rand(shape, generator=torch_generator("cpu", 0, "cost")).mul(2).sub(1).to(device)
    with torch.no_grad():
        latents = vae.encode(video, return_dict=False)[0].mean
        encode = _cost_of(lambda: vae.encode(video), data.frames, device)
        decode = _cost_of(lambda: vae.decode(latents), data.frames, device)
    return {
        "parameters": _count(vae),
        "encoder_parameters": _count(vae.encoder),
        "decoder_parameters": _count(vae.decoder),
        "compression": _compression(vae),
        **{f"encode_{name}": value for name, value in encode.items()},
        **{f"decode_{name}": value for name, value in decode.items()},
        "protocol": f"one clip {data.frames}x{data.height}x{data.width}, fp32, best of 3; 2 FLOPs per multiply-add",
    }


def _compression(vae: VideoVAE) -> str:
    return f"{vae.temporal_compression_ratio}x{vae.spatial_compression_ratio}x{vae.spatial_compression_ratio}"


def _cost_of(work, frames: int, device: torch.device) -> dict[str, float]:
    flops, seconds = count_flops(work), []
    for _ in range(3):
        start = now(device)
        work()
        seconds.append(now(device) - start)
    return {"gflops": flops / 1e9, "frames_per_second": frames / min(seconds)}


def training_cost(settings: LDMSettings, latents: Path, steps: int, seed: int, device: torch.device) -> dict:
    """Steps per second and memory growth of the generator's training at its batch size, on real latents.

    Growth is the peak of a step above the memory in use before it. Weights, optimizer state and gradients are already
    allocated then, by a step on one sample.
    """
    manifest, optimization = load_manifest(latents), settings.optimization
    torch.manual_seed(seed)
    network = new_network(settings, manifest).to(device)
    apply_model_options(network, settings)
    accelerator = make_accelerator(optimization.precision, "none", latents, "cost")
    optimizer = make_optimizer(network, optimization)
    data = LatentData(latents, manifest, settings.conditioning, settings.objective, device)

    def step(batch: Batch) -> None:
        with accelerator.autocast():
            errors = per_sample_mse(partial(predict, network), batch)
        (batch.weight * errors).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    def batches(size: int, count: int) -> list[Batch]:
        return list(islice(data.training_batches(BatchPlan(size), seed), count))

    step(batches(1, 1)[0])
    (batch_size,) = batch_sizes(settings, network, {"only": manifest.shape}).values()
    first, *timed = batches(batch_size, 1 + steps)
    memory = PeakMemory(device)
    step(first)
    growth, seconds = memory.bytes, []
    for batch in timed:
        start = now(device)
        step(batch)
        seconds.append(now(device) - start)
    accumulated = optimization.gradient_accumulation_steps  # micro-steps of a step, of which one was timed
    return {
        "parameters": _count(network),
        "latent_shape": list(first.noisy.shape[1:]),
        "tokens": tokens(network, first),
        "steps_per_second": 1 / (accumulated * median(seconds)),
        "step_seconds": [round(accumulated * value, 6) for value in seconds],
        "step_gflops": 3 * accumulated * forward_flops(network, first) / 1e9,
        "memory_growth_mb": None if growth is None else growth / 1e6,
        "batch_size": batch_size,
        "protocol": f"batch {batch_size}, median of {steps} steps on one device; memory: one step's peak "
        "growth over weights, gradients and optimizer state",
    }


def tokens(network: Network, batch: Batch) -> int:
    t, h, w = network.token_grid(batch.noisy)
    return t * h * w


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
