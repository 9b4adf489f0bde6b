"""From noise to latents: diffusers' schedulers configured for the network's objective, and the sampling loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ldm.diffusion.settings import ObjectiveSettings
from ldm.diffusion.timesteps import BETAS, DIFFUSION_STEPS, shift_for
from ldm.sampling.guidance import Guidance
from ldm.sampling.settings import SamplerName
from odvae.running.errors import InputError

CLASSES = {
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
COMPATIBLE = {"flow": ("euler", "heun", "dpmsolver++", "unipc"), "diffusion": ("ddim", "dpmsolver++", "unipc")}
# Options of diffusers' schedulers that are refused; the second kind for flow.
_STOCHASTIC_OR_FOR_PIXELS = ("stochastic_sampling", "thresholding")
_OTHER_NOISE_LEVELS = (
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "invert_sigmas",
)  # fmt: skip
PREDICTION_TYPES = {"flow": "flow_prediction", "epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def make_scheduler(name: SamplerName, objective: ObjectiveSettings) -> SchedulerMixin:
    """The scheduler of this name, configured for the objective. Raises InputError where the two do not fit."""
    kind = "flow" if objective.prediction == "flow" else "diffusion"
    if name not in COMPATIBLE[kind]:
        raise InputError(
            f"sampler={name} does not fit a network that predicts {objective.prediction}; allowed are "
            f"{', '.join(COMPATIBLE[kind])}"
        )
    return CLASSES[name](**_expected_config(CLASSES[name], objective))


def check_scheduler(scheduler: SchedulerMixin, objective: ObjectiveSettings) -> None:
    """Raise InputError, with the settings that differ, for a scheduler that does not fit the network's objective."""
    kind = "flow" if objective.prediction == "flow" else "diffusion"
    allowed = [CLASSES[name] for name in COMPATIBLE[kind]]
    if type(scheduler) not in allowed:
        raise InputError(
            f"{type(scheduler).__name__} does not fit a network that predicts {objective.prediction}; allowed are "
            f"{', '.join(kind.__name__ for kind in allowed)}"
        )
    if scheduler.config.get("use_dynamic_shifting"):
        raise InputError("use_dynamic_shifting=True: the shift is that of the objective, or a fixed one (shift=...)")
    if unfit := _unfit_options(scheduler, kind):
        raise InputError(
            f"{type(scheduler).__name__} with {', '.join(unfit)} cannot sample here: noise levels of other schedules "
            "do not fit flow, thresholds are for pixels, and stochastic steps would not follow the videos' seeds"
        )
    expected = _expected_config(type(scheduler), objective)
    differing = [
        f"{key}={scheduler.config[key]!r} instead of {value!r}"
        for key, value in expected.items()
        if key not in ("shift", "flow_shift") and scheduler.config[key] != value
    ]
    if differing:
        raise InputError(f"{type(scheduler).__name__} does not fit the network's objective: {', '.join(differing)}")


def _unfit_options(scheduler: SchedulerMixin, kind: str) -> list[str]:
    """The options of a scheduler with which it would fail, give wrong latents, or not repeat them."""
    refused = [*_STOCHASTIC_OR_FOR_PIXELS, *(_OTHER_NOISE_LEVELS if kind == "flow" else ())]
    found = [f"{name}=True" for name in refused if scheduler.config.get(name)]
    algorithm = str(scheduler.config.get("algorithm_type", ""))
    return found + ([f"algorithm_type={algorithm!r}"] if algorithm.startswith("sde-") else [])


def _expected_config(kind: type[SchedulerMixin], objective: ObjectiveSettings) -> dict:
    """The values that a scheduler's config must have for this objective."""
    if kind in (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler):
        return {"num_train_timesteps": DIFFUSION_STEPS, "shift": objective.shift}
    if objective.prediction == "flow":
        return {
            "num_train_timesteps": DIFFUSION_STEPS,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": objective.shift,
        }
    config = {
        "num_train_timesteps": DIFFUSION_STEPS,
        "prediction_type": PREDICTION_TYPES[objective.prediction],
        "beta_schedule": SCHEDULES[objective.noise_schedule],
        "timestep_spacing": "trailing",  # starts at the noisiest level, as sampling does
        "rescale_betas_zero_snr": objective.zero_terminal_snr,
    }
    if objective.noise_schedule in BETAS:
        config["beta_start"], config["beta_end"] = BETAS[objective.noise_schedule]
    if kind is DDIMScheduler:
        config["clip_sample"] = False
    return config


def check_steps(scheduler: SchedulerMixin, steps: int) -> None:
    """Raise InputError for a number of steps that the scheduler cannot take."""
    if isinstance(scheduler, DDIMScheduler) and DIFFUSION_STEPS % steps:
        # diffusers' DDIM steps by 1000 // steps between timesteps that are 1000 / steps apart.
        divisors = [n for n in range(1, DIFFUSION_STEPS + 1) if DIFFUSION_STEPS % n == 0]
        below = max(n for n in divisors if n < steps)
        above = min((n for n in divisors if n > steps), default=DIFFUSION_STEPS)
        raise InputError(f"ddim needs steps that divide 1000, found {steps}; nearest: {below} or {above}")


def schedule_steps(
    scheduler: SchedulerMixin,
    steps: int,
    positions: int,
    objective: ObjectiveSettings,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> tuple[SchedulerMixin, Tensor]:
    """A new scheduler with `steps` steps set, shifted for this many latent positions, and the network's timesteps.

    A scheduler whose shift is not the objective's keeps its own. `timesteps` or `sigmas`, before the shift, are taken
    in place of `steps` even ones by schedulers that take them.

    The timesteps (n,) are in [0, 1] and on the CPU, and so are the scheduler's: it looks its coefficients up by them,
    for which a GPU would have to finish all earlier work in each step. Raises InputError for steps that the scheduler
    cannot take.
    """
    name = next((name for name in ("shift", "flow_shift") if name in scheduler.config), None)
    flow = objective.prediction == "flow"
    shifted = {}
    if flow and name is not None and scheduler.config[name] == objective.shift:
        shifted = {name: shift_for(positions, objective)}
    scheduler = type(scheduler).from_config(scheduler.config, **shifted)
    if timesteps is not None or sigmas is not None:
        _set_custom_steps(scheduler, {"timesteps": timesteps, "sigmas": sigmas}, flow)
        return _from_the_first(scheduler), _times(scheduler, flow)
    check_steps(scheduler, steps)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        # From 1 to 1/steps: by default the last step would go from 1/1000 to 0, which is wasted.
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device="cpu")
    else:
        scheduler.set_timesteps(steps, device="cpu")
    return _from_the_first(scheduler), _times(scheduler, flow)


def _from_the_first(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The scheduler told to begin with its first step. Otherwise it looks that up by its timestep, an integer, which at
    high shifts the second step has too: it would take each step with the coefficients of the next."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def _times(scheduler: SchedulerMixin, flow: bool) -> Tensor:
    """The network's timesteps (n,) in [0, 1] of a scheduler whose steps are set."""
    if flow:
        # A shift in fp32 makes 1 a little more, which would lie outside of every interval of guidance.
        return scheduler.sigmas[: len(scheduler.timesteps)].float().clamp(0, 1)
    return scheduler.timesteps.float() / DIFFUSION_STEPS


def _set_custom_steps(scheduler: SchedulerMixin, given: dict[str, Sequence[float] | None], flow: bool) -> None:
    """Set the scheduler's steps by their timesteps or sigmas.

    Raises InputError where both are given, where the scheduler does not take them, and for values it cannot use.
    """
    chosen = {name: list(values) for name, values in given.items() if values is not None}
    if len(chosen) > 1:
        raise InputError("timesteps and sigmas were given: give one of them")
    ((name, values),) = chosen.items()
    kind = type(scheduler).__name__
    without_timesteps = flow and isinstance(scheduler, DPMSolverMultistepScheduler)
    if name not in inspect.signature(scheduler.set_timesteps).parameters or without_timesteps:
        raise InputError(f"{name} was given, but {kind} takes only num_inference_steps")
    try:
        steps = {"sigmas": np.asarray(values, dtype=np.float64)} if name == "sigmas" else chosen
        scheduler.set_timesteps(device="cpu", **steps)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}={values}: {kind} refuses them: {error}") from None


@torch.no_grad()
def sample_latents(
    predict: Callable[[Tensor, float, bool], Tensor],
    noise: Tensor,
    scheduler: SchedulerMixin,
    objective: ObjectiveSettings,
    steps: int,
    guidance: Guidance,
    progress: Callable[[Tensor], Tensor] = lambda timesteps: timesteps,
) -> Tensor:
    """Normalized latents (b, c, t, h, w), sampled from noise of that shape.

    `predict(z, time, guided)` is the network's prediction, see `guided_prediction`; `guidance` decides at which
    timesteps it is guided.
    """
    scheduler, times = schedule_steps(scheduler, steps, noise[0, 0].numel(), objective)
    latents = noise
    for timestep, time in zip(progress(scheduler.timesteps), times.tolist(), strict=True):
        predicted = predict(latents, time, guidance.applies_at(time))
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents
