"""Rehearses an experiment's stages: each one's real step once, on fake tensors."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from ldm.experiment import Experiment
from ldm.planning import inference_steps, training_steps
from ldm.planning.costs import Costs
from ldm.planning.earlier_runs import with_earlier_runs
from ldm.planning.fake_device import CUDA, fake_device
from ldm.planning.host_syncs import RehearsalError, Wait
from ldm.planning.live_memory import ACTIVATIONS, GRADIENTS, OPTIMIZER, LiveMemory, Peak, tensors_of
from ldm.planning.recorder import StepRecorder
from ldm.planning.training_steps import PreparedStep

Prepare = Callable[[torch.device, Path], PreparedStep]


@dataclass(frozen=True)
class Stage:
    """One kind of step of an experiment.

    `repeats` is how often it runs in the stage on each GPU (None: that depends on the data), `unit` what one run is,
    `scale` how much more a run costs than the rehearsed one, `samples` the clips or videos of one run, and
    `copies_gradients` whether DDP copies them into buckets of their own.
    """

    name: str
    prepare: Prepare
    unit: str
    repeats: int | None = None
    scale: float = 1.0
    trains: bool = False
    samples: int = 1
    copies_gradients: bool = False


@dataclass(frozen=True)
class Rehearsed:
    """What a step takes: peak live bytes by kind, costs, and the waits that it causes for a listed reason."""

    stage: Stage
    peak: int
    parts: dict[str, int]
    costs: Costs
    waits: dict[Wait, int]
    parts_besides: dict[str, int]
    """The same at the peak of everything but gradients."""
    gradients: int
    """Bytes of all gradients of a step."""
    gathered: int
    """Bytes of whole parameters that FSDP2 holds at once: two blocks, and what is in none."""


def stages_of(experiment: Experiment) -> Iterator[Stage]:
    """The experiment's kinds of steps, in the order of its stages."""
    given = functools.partial
    experiment = with_earlier_runs(experiment)
    vae, ldm = experiment.vae, experiment.ldm
    if vae.image_phase is not None:
        prepare = given(training_steps.image_step, experiment)
        copies = not vae.image_phase.ddp.gradient_as_bucket_view
        yield Stage(
            "train_vae, image phase", prepare, "step", vae.image_phase.steps, trains=True, copies_gradients=copies
        )
    if vae.video_phase is not None:
        phase = vae.video_phase
        steps = phase.steps if phase.image_every is None else phase.steps - phase.steps // phase.image_every
        copies = not phase.ddp.gradient_as_bucket_view
        prepare = given(training_steps.video_step, experiment)
        yield Stage("train_vae, video phase", prepare, "step", steps, trains=True, copies_gradients=copies)
        if phase.image_every is not None:
            prepare, steps = given(training_steps.video_step, experiment, images=True), phase.steps // phase.image_every
            yield Stage("train_vae, images", prepare, "step", steps, trains=True, copies_gradients=copies)
    buckets = experiment.encode.buckets_for(experiment.data)
    for bucket in buckets:
        prepare = given(inference_steps.encode_step, experiment, bucket)
        size = experiment.encode.batch_size if bucket.frames <= experiment.encode.stream_frames else 1
        yield Stage(f"encode {bucket.name}", prepare, "batch", samples=size)
    shapes = [inference_steps.shape_of_latents(experiment, bucket) for bucket in buckets]
    for bucket, shape in zip(buckets, shapes, strict=True):
        prepare = given(training_steps.ldm_step, experiment, shape)
        steps = ldm.optimization.steps // len(buckets)
        copies = not ldm.optimization.ddp.gradient_as_bucket_view
        yield Stage(f"train_ldm {bucket.name}", prepare, "step", steps, trains=True, copies_gradients=copies)
    sample = experiment.sample
    batches = -(-sample.count // sample.batch_size)
    denoise = given(inference_steps.sample_step, experiment, shapes[0])
    scale = sample.num_inference_steps / inference_steps.DENOISING_STEPS
    yield Stage("sample", denoise, "batch", batches, scale)
    yield Stage("decode", given(inference_steps.decode_step, experiment, shapes[0]), "video", sample.count)
    clips = -(-experiment.eval_vae.clips // experiment.eval_vae.batch_size)
    yield Stage("evaluate_vae", given(inference_steps.scoring_step, experiment), "batch", clips)


def rehearse(stage: Stage, device: torch.device = CUDA) -> Rehearsed:
    """Run the stage's step on fake tensors.

    Raises RehearsalError, with file and line, for whatever would fail on a GPU, and for each place that would make it
    wait without a reason that is listed (`ldm.planning.host_syncs.EXCEPTIONS`).
    """
    memory = LiveMemory(device.type)
    seen = functools.partial(_gradient_seen, memory)
    with tempfile.TemporaryDirectory() as folder, fake_device(device, seen):
        prepared = stage.prepare(device, Path(folder))
        for kind, tensors in prepared.held.items():
            memory.hold(kind, tensors)
        memory.restart()
        peaks = _OptimizerSteps(memory, prepared.optimizers)
        with StepRecorder(memory) as recorder, peaks:
            result = prepared.run()
        del result
        forbidden = recorder.syncs.forbidden
        if forbidden:
            lines = [f"{wait.where}: {wait.what}" for wait in forbidden]
            raise RehearsalError(f"{stage.name} waits for the GPU, or lets it wait:\n  " + "\n  ".join(lines))
        parts, besides = peaks.parts()
        gathered = 0 if prepared.network is None else gathered_bytes(prepared.network)
        return Rehearsed(
            stage=stage,
            peak=sum(parts.values()),
            parts=parts,
            costs=recorder.costs,
            waits=dict(recorder.syncs.found),
            parts_besides=besides,
            gradients=memory.gradients,
            gathered=gathered,
        )


def _gradient_seen(memory: LiveMemory, parameter: torch.Tensor) -> None:
    if parameter.grad is not None:
        memory.hold(GRADIENTS, [parameter.grad])


class _OptimizerSteps:
    """Within it, what optimizers allocate and keep counts as their state.

    The first step of a training has none of it until its end, all later ones have it from their beginning: the peak is
    that of a later one.
    """

    def __init__(self, memory: LiveMemory, optimizers: list[Optimizer]) -> None:
        self.memory, self.optimizers = memory, optimizers
        self.before: tuple[Peak, Peak] | None = None

    def __enter__(self) -> _OptimizerSteps:
        self.hooks = [x.register_step_pre_hook(self._begin) for x in self.optimizers]
        self.hooks += [x.register_step_post_hook(self._end) for x in self.optimizers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _begin(self, *_: object) -> None:
        if self.before is None:
            self.before = self.memory.peak, self.memory.peak_besides
            self.memory.restart()

    def _end(self, optimizer: Optimizer, *_: object) -> None:
        self.memory.hold(OPTIMIZER, tensors_of(list(optimizer.state.values())))

    def parts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes by kind at the peak of a later step, and at that of everything but gradients."""
        first, first_besides = self.before or (None, None)
        return self._parts(first, self.memory.peak), self._parts(first_besides, self.memory.peak_besides)

    def _parts(self, before: Peak | None, since: Peak) -> dict[str, int]:
        """`before`: the peak before the optimizers' steps, `since`: that from there on."""
        if before is None:  # no optimizer took a step
            return _present(since.parts)
        # State made in the step was counted as activations until its end.
        state = self.memory.live[OPTIMIZER]
        missing = state - since.parts.get(OPTIMIZER, 0)
        activations = max(0, since.parts.get(ACTIVATIONS, 0) - missing)
        later = since.parts | {OPTIMIZER: state, ACTIVATIONS: activations}
        earlier = before.parts | {OPTIMIZER: state}
        return _present(earlier if before.bytes + state >= sum(later.values()) else later)


def _present(parts: dict[str, int]) -> dict[str, int]:
    """The kinds that there are any of."""
    return {kind: size for kind, size in parts.items() if size}


def gathered_bytes(network: nn.Module) -> int:
    """Bytes of whole parameters that a rank holds at once under FSDP2: two blocks, and what is in no block."""

    def size(module: nn.Module) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters())

    names = getattr(network, "_no_split_modules", None) or ()
    blocks = [size(module) for module in network.modules() if type(module).__name__ in names]
    return size(network) - sum(blocks) + 2 * max(blocks, default=0)
