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
    backward pass costs two) on the batches that its gradients accumulate. Nothing is computed; terms of the loss other
    than the reconstruction are not counted."""
    vae, data = experiment.vae, experiment.data
    image, video, size = vae.image_phase, vae.video_phase, (data.height, data.width)
    assert video is not None  # checked by the settings' validator
    clips = (video.batch_size, 3, video.frames or data.frames, *size)
    found = {"video_phase": 3.0 * video.gradient_accumulation_steps * _reconstruction_flops(vae.model, clips, False)}
    if image is not None:
        images = (image.batch_size * min(image.images_per_clip, data.frames), 3, 1, *size)
        flops = 3.0 * image.gradient_accumulation_steps * _reconstruction_flops(vae.model, images, True)
        found = {"image_phase": flops, **found}
    return found


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
    for budget, (amount, unit) in budgets_of(settings, name).items():
        exact = 60 * amount * cost["steps_per_second"] if unit == "minutes" else 1e6 * amount / cost["step_gflops"]
        found.setdefault(max(1, round(exact)), []).append(budget)
    return dict(sorted(found.items()))


def budgets_of(settings: FrontierSettings, name: str) -> dict[str, tuple[float, str]]:
    """The budgets of a point, as results name them -> amount and unit."""
    minutes = [(one, "minutes") for one in (*settings.minutes, *settings.points[name].more_minutes)]
    pflop = [(one, "PFLOP") for one in settings.pflop]
    return {f"{amount:g} {unit}": (amount, unit) for amount, unit in (*minutes, *pflop)}
