"""What the points of a frontier will take, before they run: minutes of each part, and what is shared.

Estimates from floating-point operations at the rate of a short benchmark: the starts of processes, decoding of videos
and scoring come on top.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from statistics import median

import torch

from ldm.experiment import Experiment
from ldm.frontier.budget import budgets_of, phase_flops
from ldm.frontier.settings import FrontierSettings
from ldm.frontier.sharing import PREPARED, points_sharing, shared_stages
from ldm.networks.conditioning import example_condition
from ldm.planning.training_steps import new_network
from odvae.architecture.settings import ModelSettings
from odvae.measuring import count_flops, now
from odvae.model import ODVAE
from odvae.running.precision import autocast
from odvae.train import random_odvae

TIMED = 3


def describe_plan(settings: FrontierSettings, left: Sequence[str], of: int, flops_per_second: float) -> str:
    """The minutes of each of the points that are left to run, of so many, by part, and of what they share, once."""
    rows = {name: point_minutes(settings, name, flops_per_second) for name in left}
    stages = list(dict.fromkeys(stage for name in left for stage in shared_stages(settings, name)))
    image = phase_flops(settings.experiment_of(settings.reference))["image_phase"]
    vae = settings.experiment.vae
    assert vae.image_phase is not None  # checked by the settings' validator
    each = image * vae.image_phase.steps / flops_per_second / 60
    total = sum(sum(row.values()) for row in rows.values()) + each * sum(stage != PREPARED for stage in stages)
    lines = [
        f"plan: {len(left)} of {of} points to run, about {total:.0f} minutes at {flops_per_second / 1e9:.0f} "
        "GFLOP/s; starts of processes, decoding and scoring of videos come on top"
    ]
    for stage in stages:
        cost = "" if stage == PREPARED else f", {each:.1f} minutes"
        lines.append(f"  shared/{stage}{cost}: once for {', '.join(points_sharing(settings, stage))}")
    for name, row in rows.items():
        lines.append(f"  {name}: {sum(row.values()):.1f} minutes: {', '.join(f'{k} {v:.1f}' for k, v in row.items())}")
    return "\n".join(lines)


def point_minutes(settings: FrontierSettings, name: str, flops_per_second: float) -> dict[str, float]:
    """Minutes of a point's parts without what it shares: the VAE's video phase, the latents, the generators' trainings,
    and their samples with the reconstructions of as many real videos."""
    experiment = settings.experiment_of(name)
    reference = settings.experiment_of(settings.reference)
    flops, vae, data = phase_flops(reference), reference.vae, experiment.data
    assert vae.image_phase is not None  # checked by the settings' validator
    assert vae.video_phase is not None
    training = flops["video_phase"] * vae.video_phase.steps
    if experiment.vae.image_phase is None:
        training += flops["image_phase"] * vae.image_phase.steps
    encode, decode, shape = _clip_flops(experiment.vae.model, (1, 3, data.frames, data.height, data.width))
    clips = 0 if experiment.demo_videos is None else experiment.demo_videos.count * experiment.encode.clips_per_video
    sample, seeds = experiment.sample, len(settings.points[name].seeds)
    budgets = budgets_of(settings, name)
    scorings = seeds * len(budgets)
    guided = 2 if sample.guidance_scale != 1 and experiment.ldm.conditioning.kind != "none" else 1
    denoise = sample.num_inference_steps * guided * _forward_flops(experiment, shape)
    scored = sample.count * (denoise + encode + 2 * decode)
    longest = max(
        amount if unit == "minutes" else 1e15 * amount / flops_per_second / 60 for amount, unit in budgets.values()
    )
    minutes = 1 / flops_per_second / 60
    return {
        "VAE": training * minutes,
        "latents": (clips + experiment.vae.statistics_clips) * encode * minutes,
        f"{seeds} generators": seeds * longest,
        f"{scorings} times {sample.count} samples": scorings * scored * minutes,
    }


@functools.cache
def _clip_flops(model: ModelSettings, shape: tuple[int, ...]) -> tuple[int, int, tuple[int, int, int, int]]:
    """Operations of encoding and of decoding one clip, and the shape of its latents (c, k, h, w)."""
    with torch.device("meta"), torch.no_grad():
        vae, clip = ODVAE(**model.arguments()), torch.zeros(shape)
        latents = vae.encode(clip).latent_dist.mean
        c, k, h, w = latents.shape[1:]
        return count_flops(lambda: vae.encode(clip)), count_flops(lambda: vae.decode(latents)), (c, k, h, w)


def _forward_flops(experiment: Experiment, shape: tuple[int, int, int, int]) -> int:
    """Operations of the generator's network on the latents (c, k, h, w) of one video."""
    with torch.device("meta"), torch.no_grad():
        network = new_network(experiment, shape)
        noise, condition = torch.zeros(1, *shape), example_condition(network, 1, shape)
        return count_flops(lambda: network(noise, torch.zeros(1), condition))


def measured_flops_per_second(settings: FrontierSettings, device: torch.device) -> float:
    """Operations a second of the reference VAE's forward and backward pass on a batch of clips, in the precision of its
    training: the median of three timed passes, after one that is not. Gives the device's memory back, since the stages
    are other processes."""
    experiment = settings.experiment_of(settings.reference)
    phase, data = experiment.vae.video_phase, experiment.data
    assert phase is not None  # checked by the settings' validator
    vae = random_odvae(experiment.vae.model).to(device)
    clips = torch.zeros(phase.batch_size, 3, phase.frames or data.frames, data.height, data.width, device=device)
    seconds = []
    for _ in range(1 + TIMED):
        start = now(device)
        with autocast(phase.precision, device):
            loss = vae.reconstruct(clips)[0].float().square().mean()
        loss.backward()
        seconds.append(now(device) - start)
    del vae, clips, loss
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return phase_flops(experiment)["video_phase"] / phase.gradient_accumulation_steps / median(seconds[1:])
