"""Plans an experiment for a number of devices: memory, least time, and the smallest change that makes a step fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldm.experiment import Experiment
from ldm.planning.costs import Costs
from ldm.planning.earlier_runs import with_earlier_runs
from ldm.planning.inference_steps import shape_of_latents
from ldm.planning.latents import bytes_per_clip
from ldm.planning.live_memory import GRADIENTS, OPTIMIZER
from ldm.planning.rehearsal import Rehearsed, Stage, rehearse, stages_of
from ldm.planning.repeated import step_key
from ldm.planning.shipped import Sharding
from odvae.running.settings import load_settings
from odvae.training.devices import Device, load_devices

Checkpointing = bool | Literal["selective"]

# CUDA's context, and the workspaces of cuDNN and cuBLAS, which live bytes do not count.
RESERVED = 1.5e9


@dataclass(frozen=True)
class StagePlan:
    """One kind of step on one device of several: bytes by kind, times, and what would make it fit (None: it fits)."""

    stage: Stage
    parts: dict[str, int]
    costs: Costs
    device: Device
    count: int
    remedy: str | None

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return fits(self.bytes, self.device)

    @property
    def seconds(self) -> float:
        """The least seconds of one run: every operation without products is fused into one that has them."""
        return self.stage.scale * self.costs.least_seconds(self.device)

    @property
    def unfused_seconds(self) -> float:
        """The same where each operation reads and writes memory."""
        return self.stage.scale * self.costs.unfused_seconds(self.device)

    @property
    def hours(self) -> float | None:
        """The least hours of all runs; None where their number depends on the data. A training's steps are taken by all
        devices together, other work is divided among them."""
        if self.stage.repeats is None:
            return None
        share = 1 if self.stage.trains else self.count
        return self.seconds * self.stage.repeats / share / 3600


@dataclass(frozen=True)
class Plan:
    """The plan of a config."""

    stages: list[StagePlan]
    storage_per_clip: dict[str, int]
    """Bytes of one encoded clip, by bucket."""

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)


def fits(bytes_: float, device: Device) -> bool:
    return bytes_ + RESERVED <= device.bytes


def make_plan(
    config: Path,
    overrides: Sequence[str],
    device: Device,
    count: int,
    sharding: Sharding,
    only: str = "",
    known: dict[str, Rehearsed] | None = None,
) -> Plan:
    """Plan the steps whose name starts with `only`; those in `known`, by `step_key`, are not rehearsed again, and new
    ones are added. Raises RehearsalError for a step that cannot run on a GPU."""
    experiment = load_settings(Experiment, config, overrides)
    known = {} if known is None else known
    plans = []
    for stage in stages_of(experiment):
        if stage.name.startswith(only):
            key = step_key(experiment, stage)
            known[key] = rehearsed = known.get(key) or rehearse(stage)
            parts = parts_on_a_device(rehearsed, count, sharding)
            remedy = None
            if not fits(sum(parts.values()), device):
                remedy = find_remedy(config, overrides, stage, device, count, sharding)
            plans.append(StagePlan(stage, parts, rehearsed.costs, device, count, remedy))
    experiment = with_earlier_runs(experiment)
    buckets = experiment.encode.buckets_for(experiment.data)
    return Plan(
        plans, {bucket.name: bytes_per_clip(experiment, shape_of_latents(experiment, bucket)) for bucket in buckets}
    )


def parts_on_a_device(rehearsed: Rehearsed, count: int, sharding: Sharding) -> dict[str, int]:
    """Peak bytes by kind on one of `count` devices.

    DDP keeps all gradients in buckets from the first step on, or copies them there. FSDP2 divides parameters,
    gradients, optimizer state and EMA, and gathers two blocks at a time, of which it also has whole gradients.
    """
    parts = dict(rehearsed.parts)
    if count == 1 or not rehearsed.stage.trains:
        return parts
    if sharding == "ddp" and rehearsed.stage.copies_gradients:
        return parts | {"DDP buckets": rehearsed.gradients}
    if sharding == "ddp":
        return rehearsed.parts_besides | {GRADIENTS: rehearsed.gradients}
    for kind in ("parameters", GRADIENTS, OPTIMIZER, "EMA"):
        parts[kind] = -(-parts.get(kind, 0) // count)
    return parts | {"gathered by FSDP2": 2 * rehearsed.gathered}


def find_remedy(
    config: Path, overrides: Sequence[str], stage: Stage, device: Device, count: int, sharding: Sharding
) -> str:
    """The smallest change with which the step fits: settings, or failing that a device that has room."""
    experiment = load_settings(Experiment, config, overrides)
    least = None
    for change, how in changes(experiment, stage.name, count, sharding):
        changed = load_settings(Experiment, config, [*overrides, *change])
        rehearsed = rehearse(next(other for other in stages_of(changed) if other.name == stage.name))
        parts = parts_on_a_device(rehearsed, count, how)
        size = sum(parts.values())
        if fits(size, device):
            launched = " with configs/accelerate/fsdp2.yaml" if how != sharding else ""
            return f"{' '.join(change)}{launched}".strip() + f" ({size / 2**30:.1f} GiB)"
        least = size if least is None else min(least, size)
    needed = least or 0
    larger = [name for name, other in load_devices().items() if fits(needed, other)]
    return f"no setting tried makes it fit; it needs a device with more memory: {', '.join(larger) or 'none is known'}"


def changes(experiment: Experiment, name: str, count: int, sharding: Sharding) -> Iterator[tuple[list[str], Sharding]]:
    """Changes of settings that need less memory, from the one that costs the least time on, with the sharding."""
    section, batch, checkpointing, compiled = _settings_of(experiment, name)
    if section is None:
        return
    smaller = list(_halvings(batch))
    train = checkpointing is not None
    for size in smaller:
        yield _with_batch(experiment, section, batch, size, train), sharding
    # Selectively where nothing is recomputed and the blocks are not compiled, which does that already; then all of it.
    kinds = {False: ["true"] if compiled else ["selective", "true"], "selective": ["true"]}.get(checkpointing, [])
    for kind in kinds:
        for size in (batch, *smaller):
            change = _with_batch(experiment, section, batch, size, train) if size != batch else []
            yield [f"{section}.gradient_checkpointing={kind}", *change], sharding
    if train and sharding == "ddp" and count > 1:
        recomputing = [f"{section}.gradient_checkpointing=true"] if kinds else []
        for size in (batch, *smaller):
            change = _with_batch(experiment, section, batch, size, train) if size != batch else []
            yield [*recomputing, *change], "fsdp2"


def _settings_of(experiment: Experiment, name: str) -> tuple[str | None, int, Checkpointing | None, bool]:
    """The section with a step's batch size, that size, what it recomputes (None: it cannot), and whether it is
    compiled."""
    phases = {"train_vae, image phase": "image_phase", "train_vae, video phase": "video_phase"}
    if name in phases:
        phase = getattr(experiment.vae, phases[name])
        return f"vae.{phases[name]}", phase.batch_size, phase.gradient_checkpointing, phase.compile
    if name.startswith("train_ldm"):
        ldm = experiment.ldm.optimization
        can = experiment.ldm.unet is None
        batch = ldm.batch_size if experiment.ldm.tokens_per_batch is None else 1  # which buckets have larger ones then
        return "ldm.optimization", batch, ldm.gradient_checkpointing if can else True, ldm.compile
    sections: dict[str, tuple[str, Callable[[], int]]] = {
        "encode": ("encode", lambda: experiment.encode.batch_size),
        "sample": ("sample", lambda: experiment.sample.batch_size),
        "evaluate_vae": ("eval_vae", lambda: experiment.eval_vae.batch_size),
    }
    section = sections.get(name.split()[0])
    return (section[0], section[1](), None, False) if section is not None else (None, 1, None, False)


def _halvings(batch: int) -> Iterator[int]:
    while batch > 1:
        batch = batch // 2
        yield batch


def _with_batch(experiment: Experiment, section: str, batch: int, size: int, train: bool) -> list[str]:
    """A smaller batch, with as many more micro-steps."""
    change = [f"{section}.batch_size={size}"]
    if train:
        part = experiment
        for key in section.split("."):
            part = getattr(part, key)
        steps = part.gradient_accumulation_steps * batch // size  # type: ignore[attr-defined]
        change.append(f"{section}.gradient_accumulation_steps={steps}")
    return change
