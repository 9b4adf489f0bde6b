"""Prediction of the time of `make demo`: seconds measured on one machine, scaled by the relative speed of this one.

The relative speed is measured by a benchmark of about a second before the first stage, later by the finished stages.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from odvae.running.resume_check import read_stage_record

# Names of the stages for the user, by folder, in order.
NAMES = {
    "vae": "training the VAE",
    "latents": "encoding",
    "ldm": "training the diffusion model",
    "samples": "generating videos",
    "report": "scores",
}


@dataclass(frozen=True)
class Reference:
    """Timings of a whole run of a config on one otherwise idle machine (see LOG.md)."""

    probe: float  # seconds of `probe` on that machine
    seconds: Mapping[str, float]  # of each stage, with the start of its processes
    minutes: Mapping[str, float]  # of each stage as in its `stage.json`


REFERENCES = {
    "demo": Reference(
        probe=0.0122,
        seconds={"vae": 79, "latents": 25, "ldm": 176, "samples": 18, "report": 21},
        minutes={"vae": 1.11, "latents": 0.31, "ldm": 2.83, "samples": 0.20, "report": 0.15},
    ),
}


def seconds_left(reference: Reference, minutes: Mapping[str, float], probed: float | None = None) -> dict[str, float]:
    """Seconds that the unfinished stages will take, by stage.

    The relative speed of this machine follows from `minutes`, those of the finished stages; where there are none, from
    `probed`, the seconds of `probe` on this machine.
    """
    if minutes:
        slowness = sum(minutes.values()) / sum(reference.minutes[stage] for stage in minutes)
    else:
        assert probed is not None
        slowness = probed / reference.probe
    return {stage: slowness * seconds for stage, seconds in reference.seconds.items() if stage not in minutes}


def finished_minutes(run: Path) -> dict[str, float]:
    """Minutes of the finished stages of a run folder, as in their `stage.json`."""
    records = {stage: run / stage / "stage.json" for stage in NAMES}
    found = {stage: read_stage_record(path) for stage, path in records.items() if path.exists()}
    return {stage: record["minutes"] for stage, record in found.items() if record["finished"]}


def describe(left: Mapping[str, float]) -> str:
    """The remaining time, in all and of each stage, as one line."""
    parts = ", ".join(f"{NAMES[stage]} {format_minutes(seconds)}" for stage, seconds in left.items())
    return f"about {format_minutes(sum(left.values()))} minutes ({parts})"


def format_minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"


def probe() -> float:
    """Benchmark: seconds of a small piece of the demo's work, the median over about a second of repetitions.

    Forward and backward pass of a 3D convolution as in the VAE and of an MLP as in the diffusion transformer.
    """
    import torch
    import torch.nn.functional as F

    clips = torch.randn(4, 32, 11, 24, 24).contiguous(memory_format=torch.channels_last_3d)
    kernel = torch.randn(32, 32, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    tokens, widen, narrow = torch.randn(720, 128), torch.randn(512, 128), torch.randn(128, 512)
    inputs = [tensor.requires_grad_() for tensor in (clips, kernel, tokens, widen, narrow)]
    taken: list[float] = []
    while sum(taken) < 1 or len(taken) < 5:
        start = time.perf_counter()
        video = F.conv3d(clips, kernel, padding=(0, 1, 1))
        hidden = F.linear(F.silu(F.linear(F.layer_norm(tokens, (128,)), widen)), narrow)
        torch.autograd.grad(video.mean() + hidden.mean(), inputs)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
