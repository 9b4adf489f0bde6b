"""Identities of the diffusion objectives in float64, and samplers on Gaussian data, where the optimum is known."""

import math
import re

import pytest
import torch
from diffusers import DDIMScheduler

from ldm.diffusion.objective import add_noise, min_snr_weight, predict_eps, predict_x0, target
from ldm.diffusion.settings import ObjectiveSettings
from ldm.diffusion.timesteps import alpha_sigma, alphas_cumprod, shift_for, shift_time, training_time
from ldm.sampling.guidance import Guidance
from ldm.sampling.schedulers import (
    COMPATIBLE,
    check_scheduler,
    make_scheduler,
    sample_latents,
    schedule_steps,
)
from ldm.training.settings import LDMSettings
from odvae.running.errors import InputError

generator = torch.Generator().manual_seed(0)
x, eps = (torch.randn(5, 2, 3, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))
TIMES = torch.tensor([0.05, 0.3, 0.5, 0.75, 0.95], dtype=torch.float64)
OBJECTIVES = [ObjectiveSettings(prediction=prediction) for prediction in ("flow", "epsilon", "v", "x0")]
ZERO_SNR = [ObjectiveSettings(prediction=prediction, zero_terminal_snr=True) for prediction in ("v", "x0")]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.prediction)


@every_objective
def test_the_exact_prediction_recovers_data_and_noise(objective):
    alpha, sigma = alpha_sigma(TIMES, objective)
    z, answer = add_noise(x, eps, alpha, sigma), target(x, eps, alpha, sigma, objective.prediction)
    assert torch.allclose(predict_x0(z, answer, alpha, sigma, objective.prediction), x, atol=1e-10)
    assert torch.allclose(predict_eps(z, answer, alpha, sigma, objective.prediction), eps, atol=1e-10)


def test_the_flow_runs_from_data_to_noise_and_its_target_is_its_time_derivative():
    flow = OBJECTIVES[0]
    for time, end in ((0.0, x), (1.0, eps)):
        assert torch.equal(add_noise(x, eps, *alpha_sigma(torch.full((5,), time, dtype=torch.float64), flow)), end)
    time = TIMES.clone().requires_grad_()
    _, derivative = torch.autograd.functional.jvp(
        lambda t: add_noise(x, eps, *alpha_sigma(t, flow)), time, torch.ones(5, dtype=torch.float64)
    )
    assert torch.allclose(derivative, target(x, eps, *alpha_sigma(TIMES, flow), "flow"), atol=1e-12)


def test_v_is_the_derivative_along_the_circle_of_alpha_and_sigma():
    """With alpha = cos(phi), sigma = sin(phi): v = dz/dphi (Salimans & Ho, appendix D)."""
    alpha, sigma = alpha_sigma(TIMES, OBJECTIVES[2])
    phi = torch.atan2(sigma, alpha)
    _, derivative = torch.autograd.functional.jvp(
        lambda p: add_noise(x, eps, p.cos(), p.sin()), phi, torch.ones(5, dtype=torch.float64)
    )
    assert torch.allclose(derivative, target(x, eps, alpha, sigma, "v"), atol=1e-12)


@every_objective
def test_diffusion_keeps_variance_and_times_fall_in_signal(objective):
    times = torch.arange(1000, dtype=torch.float64) / 1000
    alpha, sigma = alpha_sigma(times, objective)
    assert (alpha.diff() < 0).all()
    if objective.prediction != "flow":
        assert torch.allclose(alpha.square() + sigma.square(), torch.ones(1000, dtype=torch.float64))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_noise_levels_are_those_of_the_sampler(schedule, zero):
    objective = ObjectiveSettings(prediction="v", noise_schedule=schedule, zero_terminal_snr=zero)
    theirs = make_scheduler("ddim", objective)
    assert isinstance(theirs, DDIMScheduler)
    ours = alphas_cumprod(schedule, zero)
    assert torch.allclose(ours, theirs.alphas_cumprod.double(), atol=2e-5)
    if zero:
        assert ours[-1] == 0
        assert torch.allclose(ours[0], alphas_cumprod(schedule, False)[0])


def test_zero_terminal_snr_trains_on_pure_noise():
    alpha, sigma = alpha_sigma(torch.tensor([0.999], dtype=torch.float64), ZERO_SNR[0])
    assert alpha == 0
    assert torch.equal(add_noise(x[:1], eps[:1], alpha, sigma), eps[:1])
    assert torch.equal(target(x[:1], eps[:1], alpha, sigma, "v"), -x[:1])
    with pytest.raises(ValueError, match="zero_terminal_snr=true needs prediction=v or x0, found epsilon"):
        ObjectiveSettings(prediction="epsilon", zero_terminal_snr=True)
    with pytest.raises(ValueError, match="zero_terminal_snr=true and min_snr_gamma exclude each other"):
        ObjectiveSettings(prediction="v", zero_terminal_snr=True, min_snr_gamma=5.0)


@every_objective
def test_min_snr_weights_an_error_of_the_data_the_same_whatever_is_predicted(objective):
    alpha, sigma = alpha_sigma(TIMES, objective)
    z, answer = add_noise(x, eps, alpha, sigma), target(x, eps, alpha, sigma, objective.prediction)
    wrong = answer + 0.1 * torch.randn(answer.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    data_error = (predict_x0(z, wrong, alpha, sigma, objective.prediction) - x).square().mean(dim=(1, 2, 3, 4))
    error = (wrong - answer).square().mean(dim=(1, 2, 3, 4))
    weighted = min_snr_weight(alpha, sigma, 5.0, objective.prediction) * error
    snr = (alpha / sigma).square()
    assert torch.allclose(weighted, snr.clamp(max=5.0) * data_error, rtol=1e-9)


def test_logit_normal_times_have_the_logits_moments_and_uniform_ones_are_even():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    time = training_time(u, ObjectiveSettings(logit_mean=0.4, logit_std=1.5))
    logits = torch.log(time / (1 - time))
    assert abs(logits.mean() - 0.4) < 1e-3
    assert abs(logits.std() - 1.5) < 1e-2
    assert torch.equal(training_time(u, ObjectiveSettings(timestep_sampling="uniform")), u)
    counts = training_time(u, ObjectiveSettings(prediction="epsilon", timestep_sampling="uniform")).unique(
        return_counts=True
    )
    assert len(counts[0]) == 1000
    assert set(counts[1].tolist()) == {100}


def test_the_shift_keeps_the_ends_can_be_undone_and_grows_with_the_root_of_the_size():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift_time(t, 3.0)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] > t[1:-1]).all()
    assert torch.allclose(shift_time(shifted, 1 / 3.0), t)
    objective = ObjectiveSettings(shift=2.0, shift_base_tokens=100)
    assert shift_for(100, objective) == 2.0
    assert shift_for(400, objective) == 4.0
    with pytest.raises(ValueError, match="prediction=flow, found prediction=v"):
        ObjectiveSettings(prediction="v", shift=2.0)


# The toy: data is normal with these moments, a different one in each of two dimensions. The best answer is then linear.
MEAN, STD = torch.tensor([1.5, -0.5], dtype=torch.float64), torch.tensor([0.4, 1.3], dtype=torch.float64)


def best_answer(z, time, objective):
    """E[target | z], from E[x | z] = m + alpha s^2 / (alpha^2 s^2 + sigma^2) (z - alpha m)."""
    alpha, sigma = alpha_sigma(torch.full((len(z),), time, dtype=z.dtype), objective)
    alpha, sigma = alpha[:, None], sigma[:, None]
    mean, variance = MEAN.to(z), STD.to(z).square()
    data = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (z - alpha * mean)
    noise = sigma / (alpha**2 * variance + sigma**2) * (z - alpha * mean)
    return {"flow": noise - data, "epsilon": noise, "v": alpha * noise - sigma * data, "x0": data}[objective.prediction]


@every_objective
def test_training_on_gaussian_data_ends_at_the_known_optimum(objective):
    """A line z -> a z + b, trained on our targets by gradient descent, becomes E[target | z]."""
    gen = torch.Generator().manual_seed(2)
    data = MEAN + STD * torch.randn(40_000, 2, dtype=torch.float64, generator=gen)
    noise = torch.randn(40_000, 2, dtype=torch.float64, generator=gen)
    alpha, sigma = alpha_sigma(torch.full((40_000,), 0.6, dtype=torch.float64), objective)
    z, wanted = add_noise(data, noise, alpha, sigma), target(data, noise, alpha, sigma, objective.prediction)
    slope, offset = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([slope, offset], lr=1.0, max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (slope * z + offset - wanted).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    points = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    assert torch.allclose(slope * points + offset, best_answer(points, 0.6, objective), atol=0.06)


def samplers_of(objective):
    return COMPATIBLE["flow" if objective.prediction == "flow" else "diffusion"]


CASES = [
    (objective, name)
    for objective in [*OBJECTIVES, *ZERO_SNR, ObjectiveSettings(shift=3.0)]
    for name in samplers_of(objective)
]


@pytest.mark.parametrize(
    ("objective", "name"),
    CASES,
    ids=[f"{o.prediction}-{'zero-snr-' if o.zero_terminal_snr else ''}{o.shift:g}-{n}" for o, n in CASES],
)
def test_every_sampler_with_the_optimal_prediction_gives_the_datas_moments(objective, name):
    """As steps grow, deterministic samplers keep (z - alpha m) / sqrt(alpha^2 s^2 + sigma^2) along the path.

    It is known at the beginning, pure noise, and so at the end. Where the noisiest level still holds signal
    (alpha = 0.07 without zero terminal SNR), the outcome is off the data's moments by a known amount.
    """
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(3))
    noise = (noise - noise.mean(0)) / noise.std(0)
    made = sample_latents(
        lambda z, time, _: best_answer(z.flatten(1), time, objective).view_as(z).to(z.dtype),
        noise.view(-1, 2, 1, 1, 1),
        make_scheduler(name, objective),
        objective,
        200,
        Guidance(scale=1.0),
    ).flatten(1)
    noisiest = 1.0 if objective.prediction == "flow" else 0.999
    alpha, sigma = alpha_sigma(torch.tensor([noisiest], dtype=torch.float64), objective)
    spread = (alpha**2 * STD**2 + sigma**2).sqrt()
    assert torch.allclose(made.mean(0).double(), MEAN - STD * alpha * MEAN / spread, atol=0.03)
    assert torch.allclose(made.std(0).double(), STD / spread, rtol=0.03)


def test_a_sampler_of_another_objective_is_refused_by_name_and_by_setting():
    flow, v = OBJECTIVES[0], OBJECTIVES[2]
    with pytest.raises(InputError, match="sampler=ddim does not fit a network that predicts flow; allowed are euler"):
        make_scheduler("ddim", flow)
    with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler does not fit a network that predicts v"):
        check_scheduler(make_scheduler("euler", flow), v)
    with pytest.raises(InputError, match="prediction_type='epsilon' instead of 'v_prediction'"):
        check_scheduler(make_scheduler("ddim", OBJECTIVES[1]), v)
    for objective in (*OBJECTIVES, *ZERO_SNR):
        for name in samplers_of(objective):
            check_scheduler(make_scheduler(name, objective), objective)


@pytest.mark.parametrize("name", ["dpmsolver++", "unipc"])
def test_two_first_timesteps_that_are_one_integer_do_not_move_the_coefficients(name):
    """At a shift of 10.5 and 100 steps diffusers' timesteps begin with 999, 999."""
    objective = ObjectiveSettings(shift=10.5)
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(3))
    noise = (noise - noise.mean(0)) / noise.std(0)
    scheduler, _ = schedule_steps(make_scheduler(name, objective), 150, 1, objective)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    made = sample_latents(
        lambda z, time, _: best_answer(z.flatten(1), time, objective).view_as(z).to(z.dtype),
        noise.view(-1, 2, 1, 1, 1), make_scheduler(name, objective), objective, 150, Guidance(scale=1.0),
    ).flatten(1)  # fmt: skip
    assert torch.allclose(made.mean(0).double(), MEAN, atol=0.03)
    assert torch.allclose(made.std(0).double(), STD, rtol=0.03)


def test_the_first_timestep_is_at_most_one_at_every_shift():
    for positions in range(50, 2000, 7):
        objective = ObjectiveSettings(shift_base_tokens=1024)
        _, times = schedule_steps(make_scheduler("euler", objective), 20, positions, objective)
        assert 0.9999 < times[0] <= 1


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("dpmsolver++", {"use_karras_sigmas": True}),
        ("unipc", {"use_beta_sigmas": True}),
        ("euler", {"invert_sigmas": True}),
        ("euler", {"stochastic_sampling": True}),
        ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++"}),
        ("unipc", {"thresholding": True}),
    ],
)
def test_options_that_would_give_wrong_latents_or_other_ones_each_time_are_refused(name, option):
    flow = OBJECTIVES[0]
    ((key, value),) = option.items()
    scheduler = make_scheduler(name, flow)
    with pytest.raises(InputError, match=re.escape(f"{key}={value!r} cannot sample here")):
        check_scheduler(type(scheduler).from_config(scheduler.config, **option), flow)


def test_custom_steps_are_taken_or_refused_in_words():
    flow = OBJECTIVES[0]
    _, times = schedule_steps(make_scheduler("unipc", flow), 4, 1, flow, sigmas=[1.0, 0.75, 0.5, 0.25])
    assert times.tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=2e-3)
    with pytest.raises(InputError, match=r"timesteps was given, but DPMSolver.* takes only num_inference_steps"):
        schedule_steps(make_scheduler("dpmsolver++", flow), 4, 1, flow, timesteps=[999, 500])


def test_the_last_step_is_trained_where_sampling_starts_from_it():
    with pytest.raises(ValueError, match=r"zero_terminal_snr=true needs ldm\.objective\.timestep_sampling=uniform"):
        LDMSettings(objective=ZERO_SNR[0])
    LDMSettings(objective=ObjectiveSettings(prediction="v", zero_terminal_snr=True, timestep_sampling="uniform"))


def test_ddim_refuses_numbers_of_steps_with_wrong_timesteps():
    v = OBJECTIVES[2]
    with pytest.raises(InputError, match="steps that divide 1000, found 30; nearest: 25 or 40"):
        schedule_steps(make_scheduler("ddim", v), 30, 1, v)


def test_guidance_acts_in_its_interval_and_rescale_restores_the_spread():
    conditional, unconditional = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(4)), torch.zeros(1)
    guidance = Guidance(scale=4.0, interval=(0.2, 0.8))
    assert [guidance.applies_at(t) for t in (0.1, 0.5, 0.9)] == [False, True, False]
    assert not Guidance(scale=1.0).applies_at(0.5)
    assert torch.allclose(guidance.combine(conditional, unconditional), 4 * conditional)
    rescaled = Guidance(scale=4.0, rescale=1.0).combine(conditional, unconditional)
    assert torch.allclose(rescaled, conditional, atol=1e-5)
    assert math.isclose(float(Guidance(scale=4.0, rescale=0.5).combine(conditional, unconditional).std()),
                        2.5 * float(conditional.std()), rel_tol=1e-5)  # fmt: skip
