"""Measures of latents on tensors whose value is known by hand."""

import math

import pytest
import torch

from odvae.evaluation.latent_measures import (
    AXES,
    LatentSums,
    channel_spectrum,
    dct_matrix,
    kl_bits,
    noise_robustness,
    spectral_energy,
    white_share,
)
from odvae.metrics import psnr


def share(latents, axes=AXES["spatiotemporal"]):
    low, total = spectral_energy(latents, axes)
    return low / total


def test_the_transform_is_orthonormal():
    for n in (1, 5, 8):
        waves = dct_matrix(n)
        assert torch.allclose(waves @ waves.T, torch.eye(n, dtype=torch.float64), atol=1e-12)


def test_energy_is_that_of_the_deviations_from_the_mean_along_the_axes():
    latents = torch.randn(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for axes in AXES.values():
        deviation = latents - latents.mean(dim=axes, keepdim=True)
        assert spectral_energy(latents, axes)[1] == pytest.approx(float(deviation.square().sum()))


def test_waves_are_low_or_high_by_their_index_along_each_axis():
    """Along an axis of 8, indices 0 to 3 are low, 4 to 7 high; of 5, 0 to 2 are low."""
    time, side = dct_matrix(5), dct_matrix(8)

    def wave(t, h, w):
        return 3 + torch.einsum("t,h,w->thw", time[t], side[h], side[w])[None, None]

    assert share(wave(1, 2, 3)) == pytest.approx(1)
    assert share(wave(2, 0, 0)) == pytest.approx(1)
    assert share(wave(3, 0, 0)) == pytest.approx(0, abs=1e-12)
    assert share(wave(1, 4, 0)) == pytest.approx(0, abs=1e-12)
    assert share(wave(1, 4, 0), AXES["temporal"]) == pytest.approx(1)  # time alone is slow
    assert share(wave(3, 1, 0), AXES["spatial"]) == pytest.approx(1)
    assert share(2 * wave(1, 0, 0) + wave(4, 0, 0)) == pytest.approx(4 / 5)  # energies 4 and 1


def test_white_noise_has_the_share_of_its_coefficients():
    noise = torch.randn(1, 64, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    for axes in AXES.values():
        expected = white_share([noise.shape[axis] for axis in axes])
        assert share(noise, axes) == pytest.approx(expected, abs=0.02)
    assert white_share([5]) == 2 / 4
    assert white_share([4, 4]) == 3 / 15
    assert white_share([1]) is None


def test_the_effective_rank_counts_equal_eigenvalues():
    assert channel_spectrum(torch.eye(5)) == (pytest.approx(5), pytest.approx(1 / 5))
    assert channel_spectrum(torch.ones(4, 4)) == (pytest.approx(1), pytest.approx(1))
    quarters = torch.diag(torch.tensor([0.5, 0.25, 0.25]))
    assert channel_spectrum(quarters) == (pytest.approx(2**1.5), pytest.approx(0.5))
    assert channel_spectrum(torch.zeros(3, 3)) == (0, 0)


def test_bits_of_known_gaussians():
    """A standard normal costs none; halving the deviation at mean 0 costs 1 + (1/4 - 1) / (2 ln 2) bits."""
    zero, one = torch.zeros(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 2)
    assert kl_bits(zero, one) == 0
    assert kl_bits(zero, one / 2) == pytest.approx(2 * (1 - 0.75 / (2 * math.log(2))))
    assert kl_bits(one, one) == pytest.approx(2 * 0.5 / math.log(2))


def sums_of(latents, std=0.1, pixels=100):
    """The sums of clips (n, c, t, h, w), with a posterior's deviation that is the same everywhere."""
    deviation = torch.full_like(latents, std)
    mean = latents.mean(dim=(0, 2, 3, 4))
    total = (latents.square() + std**2).mean(dim=(0, 2, 3, 4)) - mean.square()
    parts = []
    for clip in range(len(latents)):
        parts.append(LatentSums())
        parts[-1].add(torch.cat([latents[clip], deviation[clip]]), mean, total.sqrt(), pixels)
    return sum(parts, LatentSums())


def test_scale_and_offset_of_a_channel_change_only_the_divergence_from_the_standard_normal():
    latents = torch.randn(3, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 50.0, 0.1, 3.0]).view(4, 1, 1, 1)
    plain, scaled = sums_of(latents, std=0.0).measures(), sums_of(latents * scale + 9, std=0.0).measures()
    for name in ("effective_rank", "largest_eigenvalue_share", "local_correlation"):
        assert scaled[name] == pytest.approx(plain[name], abs=1e-3)
    assert scaled["low_frequency_share"]["spatial"] == pytest.approx(plain["low_frequency_share"]["spatial"], abs=1e-4)
    assert scaled["kl_bits_per_pixel"] > 2 * plain["kl_bits_per_pixel"]


def test_the_rate_of_a_channel_is_half_the_logarithm_of_signal_and_noise_over_noise():
    """On average over a channel, KL to its own Gaussian is log2(total deviation / noise's deviation)."""
    latents = torch.randn(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sums_of(latents, std=0.5, pixels=96).measures()  # 2 x 48 latents of 96 pixels
    total = (latents.var(dim=(0, 2, 3, 4), correction=0) + 0.25).sqrt()
    expected = float(torch.log2(total / 0.5).sum() * 48 / 96)
    assert found["bits_per_pixel"] == pytest.approx(expected, rel=1e-5)


def test_independent_channels_have_full_rank_and_copies_have_rank_one():
    noise = torch.randn(8, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert sums_of(noise).measures()["effective_rank"] == pytest.approx(3, abs=0.01)
    assert sums_of(noise[:, :1].expand(-1, 3, -1, -1, -1)).measures()["effective_rank"] == pytest.approx(1, abs=0.01)


def test_latents_without_neighbors_or_time_have_no_value_in_place_of_a_wrong_one():
    found = sums_of(torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))).measures()
    assert found["local_correlation"] is None
    assert found["low_frequency_share"]["temporal"] is None
    assert found["low_frequency_share_of_white_noise"]["temporal"] is None


def test_noise_lowers_the_psnr_of_an_identity_by_what_its_deviation_says():
    """Decoded as it is, noise of deviation a has PSNR 10 log10(4 / a^2); without noise the clip is equal: 100 dB."""
    latents = torch.zeros(1, 3, 4, 64, 64)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.2, 0.2, 0.2])
    drops = noise_robustness(lambda z: z, latents, std, noise, (0.5, 1.0), lambda v: float(psnr(v, latents)[0]))
    for level in (0.5, 1.0):
        assert drops[level] == pytest.approx(100 - 10 * math.log10(4 / (0.2 * level) ** 2), abs=0.1)
