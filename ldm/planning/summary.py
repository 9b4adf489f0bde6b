"""A plan in words: a table, and the one line in a config's header."""

from __future__ import annotations

from ldm.planning.planner import RESERVED, Plan, StagePlan
from ldm.planning.shipped import PLAN

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


def one_line(plan: Plan, device: str, count: int) -> str:
    """The line of a config's header: the largest memory of each stage, and the least hours of trainings."""
    found: dict[str, tuple[float, float]] = {}
    for step in plan.stages:
        name = step.stage.name.split()[0].rstrip(",")
        memory, hours = found.get(name, (0.0, 0.0))
        found[name] = max(memory, step.bytes / 2**30), hours + (step.hours or 0) * step.stage.trains
    stages = [
        f"{name} {memory:.1f} GiB" + (f" {hours:.3g} h" if hours >= 0.1 else "")
        for name, (memory, hours) in found.items()
    ]
    fits = "" if plan.fits else "; does not fit"
    return f"{PLAN}{count} x {device}: {', '.join(stages)}{fits}"
