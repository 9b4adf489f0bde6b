"""What torch.compile makes of a training's blocks: graphs, breaks and recompilations, over all of its shapes.

Only its front end runs, on tensors without values, at the true sizes: no compiler and no GPU is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ldm.experiment import Experiment
from ldm.networks.conditioning import example_condition
from ldm.planning.earlier_runs import with_earlier_runs
from ldm.planning.host_syncs import RehearsalError
from ldm.planning.inference_steps import shape_of_latents
from ldm.planning.training_steps import new_network, rehearsed_backend
from ldm.training.step import apply_model_options
from odvae.initial_weights import make_image_vae
from odvae.settings import ImagePhaseSettings, PhaseSettings, VideoPhaseSettings
from odvae.train import random_odvae
from odvae.training_step import prepare_network

META = torch.device("meta")


@dataclass(frozen=True)
class Call:
    """One shape in which a training calls its network; with gradients in training steps only."""

    name: str
    trains: bool
    inputs: Callable[[Any], tuple[Any, ...]]
    """The network's arguments, made on the device that is the default one."""


@dataclass(frozen=True)
class CompiledTraining:
    """A training whose blocks are compiled: how to make its network, and the calls of a run."""

    name: str
    prepare: Callable[[], nn.Module]
    calls: Sequence[Call]


def compiled_trainings(experiment: Experiment) -> Iterator[CompiledTraining]:
    """The trainings of an experiment with compile=true."""
    experiment = with_earlier_runs(experiment)
    vae = experiment.vae
    if vae.image_phase is not None and vae.image_phase.compile:
        yield _image_phase(experiment, vae.image_phase)
    if vae.video_phase is not None and vae.video_phase.compile:
        yield _video_phase(experiment, vae.video_phase)
    if experiment.ldm.optimization.compile and experiment.ldm.dit is not None:
        yield _ldm(experiment)


def count_graphs(training: CompiledTraining) -> int:
    """How many graphs are compiled in the training.

    Raises RehearsalError for code that is left uncompiled (a graph break), with torch's reason, for a shape that is
    compiled a second time, and where torch's limit of graphs is passed.
    """
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    def compile_with_front_end(module: nn.Module, **options: Any) -> None:
        original(module, backend=count, **options)

    original = nn.Module.compile
    torch._dynamo.reset()
    counters.clear()
    limits = {"recompile_limit", "accumulated_recompile_limit"}
    before = {name: getattr(torch._dynamo.config, name) for name in limits}
    try:
        with (
            mock.patch.object(nn.Module, "compile", compile_with_front_end),
            torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, **before),
        ):
            network = training.prepare()
            for call in training.calls:
                _run(call, network)
            first = graphs
            for call in training.calls:
                _run(call, network)
                if graphs > first:
                    raise RehearsalError(f"{training.name}: {call.name} is compiled again when it is called again")
        if counters["graph_break"]:
            raise RehearsalError(f"{training.name} has graph breaks:\n  " + "\n  ".join(counters["graph_break"]))
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise RehearsalError(f"{training.name}: {error}") from None
    finally:
        torch._dynamo.reset()
        counters.clear()
    return first


def _run(call: Call, network: nn.Module) -> None:
    network.train(call.trains)
    with META:
        inputs = call.inputs(network)
    with torch.set_grad_enabled(call.trains):
        network(*inputs)


def _image_phase(experiment: Experiment, phase: ImagePhaseSettings) -> CompiledTraining:
    images = phase.batch_size * min(phase.images_per_clip, experiment.data.frames)
    sizes = {"a step": (images, 1), "validation": (1, experiment.data.frames)}
    return _vae(experiment, "train_vae, image phase", lambda: make_image_vae(experiment.vae.model), phase, sizes)


def _video_phase(experiment: Experiment, phase: VideoPhaseSettings) -> CompiledTraining:
    sizes = {"a step": (phase.batch_size, phase.frames or experiment.data.frames)}
    if phase.image_every is not None:
        sizes["a step on images"] = (max(1, phase.images_per_step // phase.gradient_accumulation_steps), 1)
    sizes["validation"] = (1, phase.frames or experiment.data.frames)
    return _vae(experiment, "train_vae, video phase", lambda: random_odvae(experiment.vae.model), phase, sizes)


def _vae(
    experiment: Experiment,
    name: str,
    make: Callable[[], Any],
    phase: PhaseSettings,
    sizes: dict[str, tuple[int, int]],
) -> CompiledTraining:
    def prepare() -> nn.Module:
        with META:
            network = make()
        prepare_network(network, phase)
        return network

    def video(b: int, frames: int, _: Any) -> tuple[Tensor]:
        return (torch.zeros(b, 3, frames, experiment.data.height, experiment.data.width),)

    calls = [
        Call(f"{kind} of {frames} frames", kind != "validation", functools.partial(video, b, frames))
        for kind, (b, frames) in sizes.items()
    ]
    return CompiledTraining(name, prepare, calls)


def _ldm(experiment: Experiment) -> CompiledTraining:
    buckets = experiment.encode.buckets_for(experiment.data)
    shapes = [shape_of_latents(experiment, bucket) for bucket in buckets]

    def prepare() -> nn.Module:
        with META:
            network = new_network(experiment, shapes[0])
        backend = rehearsed_backend(experiment.ldm.attention_backend)
        apply_model_options(network, experiment.ldm.model_copy(update={"attention_backend": backend}))
        return network

    def inputs(b: int, shape: tuple[int, int, int, int], network: Any) -> tuple[Any, ...]:
        return torch.zeros(b, *shape), torch.zeros(b), example_condition(network, b, shape)

    def calls() -> Iterator[Call]:
        for bucket, shape in zip(buckets, shapes, strict=True):
            b = experiment.ldm.optimization.batch_size
            kinds = {
                "a step": (b, True),
                "validation": (b, False),
                "sampling": (1, False),
                "guided sampling": (2, False),
            }
            for kind, (size, trains) in kinds.items():
                name = f"{kind} of {bucket.name}"
                yield Call(name, trains, functools.partial(inputs, size, shape))

    return CompiledTraining("train_ldm", prepare, list(calls()))
