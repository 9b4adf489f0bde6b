"""What a step takes on a real device, beside what its rehearsal predicts: memory, time, and where the time goes."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldm.planning.rehearsal import Stage, rehearse
from ldm.planning.training_steps import PreparedStep
from odvae.measuring import now
from odvae.training.devices import Device

_OPERATIONS = 20  # of a profile


def peak_growth(run: Callable[[], object]) -> int:
    """The most bytes that torch's allocator on the CPU held at a time in `run`, more than at its start."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def peak_of(prepared: PreparedStep, device: torch.device) -> int:
    """Peak bytes of tensors in a step that has run once before, so that the optimizer has its state."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        prepared.run()
        return torch.cuda.max_memory_allocated(device)
    held = [tensor for tensors in prepared.held.values() for tensor in tensors]
    held += [x for optimizer in prepared.optimizers for slots in optimizer.state.values() for x in slots.values()]
    return sum(x.numel() * x.element_size() for x in held) + peak_growth(prepared.run)


def measure_step(stage: Stage, device: torch.device, known: Device | None, repeats: int) -> dict[str, Any]:
    """Peak memory and median seconds of a stage's step, with the prediction of its rehearsal.

    `known`: the device's peaks, for the least time; None: it is left out.
    """
    predicted = rehearse(stage, device)
    with tempfile.TemporaryDirectory() as folder:
        prepared = stage.prepare(device, Path(folder))
        prepared.run()
        peak = peak_of(prepared, device)
        seconds = []
        for _ in range(repeats):
            start = now(device)
            prepared.run()
            seconds.append(now(device) - start)
    median = statistics.median(seconds)
    row: dict[str, Any] = {
        "step": stage.name,
        "peak_gib": peak / 2**30,
        "predicted_gib": predicted.peak / 2**30,
        "peak_over_predicted": peak / predicted.peak,
        "seconds": median,
        "tflops": predicted.costs.flops / 1e12,
        "tflops_per_second": predicted.costs.flops / median / 1e12,
    }
    if known is not None:
        least = predicted.costs.least_seconds(known)
        row |= {"least_seconds": least, "least_over_seconds": least / median}
    return row


def profile_step(stage: Stage, device: torch.device) -> dict[str, Any]:
    """The operations of a step that take the most time themselves, with their milliseconds, and the whole's."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with tempfile.TemporaryDirectory() as folder:
        prepared = stage.prepare(device, Path(folder))
        prepared.run()
        now(device)
        with torch.profiler.profile(activities=activities) as profiler:
            prepared.run()
            now(device)
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: getattr(event, attribute), reverse=True)
    times = {event.key: getattr(event, attribute) / 1e3 for event in events}
    largest = dict(list(times.items())[:_OPERATIONS])
    return {"step": stage.name, "milliseconds": sum(times.values()), "operations": largest}
