"""Rectified flow's identities, in float64."""

import torch

from ldm.objective import data_estimate, interpolate, logit_normal, velocity

generator = torch.Generator().manual_seed(0)
x, eps = (torch.randn(4, 2, 3, 5, 5, dtype=torch.float64, generator=generator) for _ in range(2))


def test_the_path_runs_from_data_to_noise():
    assert torch.equal(interpolate(x, eps, torch.zeros(4, dtype=torch.float64)), x)
    assert torch.equal(interpolate(x, eps, torch.ones(4, dtype=torch.float64)), eps)


def test_the_velocity_is_the_paths_derivative():
    sigma = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    _, derivative = torch.autograd.functional.jvp(
        lambda s: interpolate(x, eps, s), sigma, torch.ones(4, dtype=torch.float64)
    )
    assert torch.allclose(derivative, velocity(x, eps), atol=1e-12)


def test_the_true_velocity_leads_back_to_the_data_from_any_noise_level():
    for level in (0.05, 0.5, 1.0):
        sigma = torch.full((4,), level, dtype=torch.float64)
        assert torch.allclose(data_estimate(interpolate(x, eps, sigma), velocity(x, eps), sigma), x, atol=1e-12)


def test_logit_normal_levels_have_the_logits_moments():
    normal = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = logit_normal(normal, mean=0.4, std=1.5)
    logits = torch.log(sigma / (1 - sigma))
    assert sigma.min() > 0
    assert sigma.max() < 1
    assert abs(logits.mean() - 0.4) < 0.02
    assert abs(logits.std() - 1.5) < 0.02
