"""A plan in words: a table, and the one line in a config's header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ldm.planning.planner import RESERVED, Plan, StagePlan, parts_on_a_device
from ldm.planning.rehearsal import Rehearsed
from ldm.planning.shipped import PLAN, header_of, header_plan, header_sharding

# Parts of the memory that are printed, in this order, with the names of their columns.
COLUMNS = {
    "parameters": "params",
    "gradients": "grads",
    "optimizer": "optim",
    "EMA": "EMA",
    "activations": "activ",
}


def describe(plan: Plan, clips: int | None) -> str:
    """The plan as a table, one line a step; then what does not fit, and what it takes to store the latents."""
    lines = [
        f"  {'step':<28} {'GiB':>6} {''.join(f'{name:>7}' for name in COLUMNS.values())} {'other':>6}"
        f" {'TFLOP':>9} {'GB':>8} {'least s':>8} {'unfused':>8} {'hours':>8}"
    ]
    lines += [_row(stage) for stage in plan.stages]
    for stage in plan.stages:
        if not stage.fits:
            free = (stage.device.bytes - RESERVED) / 2**30
            lines.append(f"  {stage.stage.name} does not fit into {free:.1f} GiB; what makes it fit: {stage.remedy}")
    for bucket, size in plan.storage_per_clip.items():
        whole = f", {clips * size / 1e9:,.1f} GB for {clips:,} clips" if clips else ""
        lines.append(f"  latents of {bucket}: {size / 1e6:.3f} MB a clip{whole}")
    encodes = [stage for stage in plan.stages if stage.stage.name.startswith("encode")]
    if clips and len(encodes) == 1:
        (encode,) = encodes
        hours = encode.seconds * clips / encode.stage.samples / encode.count / 3600
        lines.append(f"  encoding {clips:,} clips: at least {hours:,.2f} h")
    return "\n".join(lines)


def _row(stage: StagePlan) -> str:
    parts = "".join(f"{stage.parts.get(name, 0) / 2**30:>7.2f}" for name in COLUMNS)
    other = sum(size for name, size in stage.parts.items() if name not in COLUMNS)
    hours = "" if stage.hours is None else f"{stage.hours:,.2f}"
    return (
        f"  {stage.stage.name:<28} {stage.bytes / 2**30:>6.2f} {parts} {other / 2**30:>6.2f}"
        f" {stage.stage.scale * stage.costs.flops / 1e12:>9,.3f} {stage.stage.scale * stage.costs.bytes / 1e9:>8,.1f}"
        f" {stage.seconds:>8.3g} {stage.unfused_seconds:>8.3g} {hours:>8}"
    )


def stage_of(step: str) -> str:
    """The stage that a kind of step belongs to, as headers name it."""
    return step.split()[0].rstrip(",")


def header_differences(config: Path, rehearsed: Mapping[str, Rehearsed]) -> list[str]:
    """What is wrong in the plan of a config's header: a line for each stage whose largest step takes other memory.

    `rehearsed`: by name, all kinds of steps of the stages that are compared.
    """
    (plan,) = [line for line in header_of(config) if line.startswith(PLAN)] or [""]
    planned = dict(re.findall(r"([a-z_]+) ([\d.]+) GiB", plan))
    _, count = header_plan(config)
    found: dict[str, float] = {}
    for step, one in rehearsed.items():
        size = sum(parts_on_a_device(one, count, header_sharding(config)).values()) / 2**30
        found[stage_of(step)] = max(size, found.get(stage_of(step), 0.0))
    return [
        f"{stage} takes {size:.1f} GiB, and its header's plan says {planned.get(stage, 'nothing')}; renew it: "
        f"python tools/plan.py {config} --write"
        for stage, size in found.items()
        if planned.get(stage) != f"{size:.1f}"
    ]


def one_line(plan: Plan, device: str, count: int) -> str:
    """The line of a config's header: the largest memory of each stage, and the least hours of trainings."""
    found: dict[str, tuple[float, float]] = {}
    for step in plan.stages:
        name = stage_of(step.stage.name)
        memory, hours = found.get(name, (0.0, 0.0))
        found[name] = max(memory, step.bytes / 2**30), hours + (step.hours or 0) * step.stage.trains
    stages = [
        f"{name} {memory:.1f} GiB" + (f" {hours:.3g} h" if hours >= 0.1 else "")
        for name, (memory, hours) in found.items()
    ]
    fits = "" if plan.fits else "; does not fit"
    return f"{PLAN}{count} x {device}: {', '.join(stages)}{fits}"
