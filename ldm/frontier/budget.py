"""Equal compute: the steps that a VAE's phases and a generator may take."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ldm.experiment import Experiment
from ldm.frontier.settings import FrontierSettings
from odvae.initial_weights import make_image_vae
from odvae.measuring import count_flops
from odvae.model import ODVAE


def with_equal_steps(settings: FrontierSettings, name: str) -> Experiment:
    """The experiment of a point whose two phases have the steps that cost what the reference's cost."""
    experiment, reference = settings.experiment_of(name), settings.experiment_of(settings.reference)
    ours, theirs = phase_flops(experiment), phase_flops(reference)
    phases = {}
    for phase in ("image_phase", "video_phase"):
        chosen = getattr(experiment.vae, phase)
        steps = max(1, round(getattr(reference.vae, phase).steps * theirs[phase] / ours[phase]))
        # Validation and checkpoints keep their number, whatever the number of steps.
        share = steps / chosen.steps
        every = {key: max(1, round(getattr(chosen, key) * share)) for key in ("validate_every", "checkpoint_every")}
        phases[phase] = chosen.model_copy(update={"steps": steps, **every})
    return experiment.model_copy(update={"vae": experiment.vae.model_copy(update=phases)})


def phase_flops(experiment: Experiment) -> dict[str, float]:
    """Floating-point operations of one step of each phase: three forward passes of the VAE (the backward pass costs
    two) on a batch. Nothing is computed; terms of the loss other than the reconstruction are not counted."""
    vae, data = experiment.vae, experiment.data
    assert vae.image_phase is not None
    assert vae.video_phase is not None
    frames = vae.video_phase.frames or data.frames
    with torch.device("meta"), torch.no_grad():
        images = torch.zeros(vae.image_phase.batch_size, 3, 1, data.height, data.width)
        clips = torch.zeros(vae.video_phase.batch_size, 3, frames, data.height, data.width)
        image_vae, video_vae = make_image_vae(vae.model), ODVAE(**vae.model.arguments())
        return {
            "image_phase": 3.0 * count_flops(lambda: image_vae.reconstruct(images)),
            "video_phase": 3.0 * count_flops(lambda: video_vae.reconstruct(clips)),
        }


def generator_steps(settings: FrontierSettings, cost: Mapping[str, float]) -> dict[int, list[str]]:
    """The steps at which a generator is scored, ascending -> the budgets that these steps are, in words.

    `cost` has the measured `steps_per_second` and the `step_gflops`.
    """
    found: dict[int, list[str]] = {}
    for minutes in settings.minutes:
        steps = max(1, round(60 * minutes * cost["steps_per_second"]))
        found.setdefault(steps, []).append(f"{minutes:g} minutes")
    for pflop in settings.pflop:
        steps = max(1, round(1e6 * pflop / cost["step_gflops"]))
        found.setdefault(steps, []).append(f"{pflop:g} PFLOP")
    return dict(sorted(found.items()))
