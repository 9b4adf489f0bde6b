"""How long `make demo` takes on a machine: seconds measured on one machine, scaled by how fast this one is.

Before the first stage a second of the demo's kind of work says that; later the stages that are finished do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from odvae.running.files import read_json

# What the stages' folders are called when a person waits for them, in the order of the work.
NAMES = {
    "vae": "training the VAE",
    "latents": "encoding",
    "ldm": "training the diffusion model",
    "samples": "generating videos",
    "report": "scores",
}


@dataclass(frozen=True)
class Reference:
    """A whole run of a config on one machine (LOG.md says which), alone on it."""

    probe: float  # seconds of `probe` there
    seconds: Mapping[str, float]  # of each stage, the start of its processes included
    minutes: Mapping[str, float]  # of each stage by its own clock (`stage.json`)


REFERENCES = {
    "demo": Reference(
        probe=0.0141,
        seconds={"vae": 118, "latents": 34, "ldm": 227, "samples": 25, "report": 26},
        minutes={"vae": 1.70, "latents": 0.47, "ldm": 3.69, "samples": 0.31, "report": 0.22},
    ),
}


def seconds_left(reference: Reference, minutes: Mapping[str, float], probed: float | None = None) -> dict[str, float]:
    """Seconds that the unfinished stages will take, by stage.

    `minutes` has the finished stages' own, which say how fast the machine is; before there is one, `probed` does: the
    seconds of `probe` on this machine.
    """
    if minutes:
        slowness = sum(minutes.values()) / sum(reference.minutes[stage] for stage in minutes)
    else:
        assert probed is not None
        slowness = probed / reference.probe
    return {stage: slowness * seconds for stage, seconds in reference.seconds.items() if stage not in minutes}


def finished_minutes(run: Path) -> dict[str, float]:
    """Minutes of the finished stages of a run folder, by their own clocks."""
    records = {stage: run / stage / "stage.json" for stage in NAMES}
    found = {stage: read_json(path) for stage, path in records.items() if path.exists()}
    return {stage: record["minutes"] for stage, record in found.items() if record["finished"]}


def describe(left: Mapping[str, float]) -> str:
    """The time left, and of which stages, in a line."""
    parts = ", ".join(f"{NAMES[stage]} {format_minutes(seconds)}" for stage, seconds in left.items())
    return f"about {format_minutes(sum(left.values()))} minutes ({parts})"


def format_minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"


def probe() -> float:
    """Seconds of one piece of the demo's kind of work, the median over about a second of them.

    Forward and backward of a video convolution of the VAE's and of a layer of the diffusion transformer.
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
