"""Equal compute: the steps that a VAE's phases and a generator may take."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch

from ldm.experiment import Experiment
from ldm.frontier.settings import FrontierSettings
from odvae.architecture.settings import ModelSettings
from odvae.initial_weights import make_image_vae
from odvae.measuring import count_flops
from odvae.model import ODVAE


def with_equal_steps(settings: FrontierSettings, name: str) -> Experiment:
    """The experiment of a point whose phases have the steps that cost what the reference's cost.

    A point without an image phase (random initialization) has the operations of both phases in its video phase.
    """
    experiment, reference = settings.experiment_of(name), settings.experiment_of(settings.reference)
    ours, theirs = phase_flops(experiment), phase_flops(reference)
    budget = {phase: flops * getattr(reference.vae, phase).steps for phase, flops in theirs.items()}
    if experiment.vae.image_phase is None:
        budget = {"video_phase": sum(budget.values())}
    phases = {}
    for phase, flops in budget.items():
        chosen = getattr(experiment.vae, phase)
        steps = max(1, round(flops / ours[phase]))
        # Validation and checkpoints keep their number, whatever the number of steps.
        share = steps / chosen.steps
        every = {key: max(1, round(getattr(chosen, key) * share)) for key in ("validate_every", "checkpoint_every")}
        phases[phase] = chosen.model_copy(update={"steps": steps, **every})
    return experiment.model_copy(update={"vae": experiment.vae.model_copy(update=phases)})


def phase_flops(experiment: Experiment) -> dict[str, float]:
    """Floating-point operations of one step of each phase that the point has: three forward passes of the VAE (the
    backward pass costs two) on a batch. Nothing is computed; terms of the loss other than the reconstruction are not
    counted."""
    vae, data = experiment.vae, experiment.data
    assert vae.video_phase is not None  # checked by the settings' validator
    size, found = (data.height, data.width), {}
    if vae.image_phase is not None:
        found["image_phase"] = 3.0 * _reconstruction_flops(vae.model, (vae.image_phase.batch_size, 3, 1, *size), True)
    clips = (vae.video_phase.batch_size, 3, vae.video_phase.frames or data.frames, *size)
    return {**found, "video_phase": 3.0 * _reconstruction_flops(vae.model, clips, False)}


@functools.cache
def _reconstruction_flops(model: ModelSettings, shape: tuple[int, ...], by_image_vae: bool) -> int:
    """Operations of encoding and decoding a batch (b, 3, t, h, w)."""
    with torch.device("meta"), torch.no_grad():
        vae = make_image_vae(model) if by_image_vae else ODVAE(**model.arguments())
        batch = torch.zeros(shape)
        return count_flops(lambda: vae.reconstruct(batch))


def generator_steps(settings: FrontierSettings, name: str, cost: Mapping[str, float]) -> dict[int, list[str]]:
    """The steps at which a point's generator is scored, ascending -> the budgets that these steps are, in words.

    `cost` has the measured `steps_per_second` and the `step_gflops`.
    """
    found: dict[int, list[str]] = {}
    for minutes in (*settings.minutes, *settings.points[name].more_minutes):
        steps = max(1, round(60 * minutes * cost["steps_per_second"]))
        found.setdefault(steps, []).append(f"{minutes:g} minutes")
    for pflop in settings.pflop:
        steps = max(1, round(1e6 * pflop / cost["step_gflops"]))
        found.setdefault(steps, []).append(f"{pflop:g} PFLOP")
    return dict(sorted(found.items()))
