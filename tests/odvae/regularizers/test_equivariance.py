"""Equivariance: latents and videos are transformed alike, at any compression; draws are a function of (seed, step)."""

import pytest
import torch
import torch.nn.functional as F
from small_vae import DATA
from torch import nn

from odvae.regularizers.equivariance import Transformation, check_smallest_clip, draw_transformation
from odvae.regularizers.regularized_vae import LatentChanges
from odvae.regularizers.settings import EquivarianceSettings, RegularizerSettings
from odvae.running.errors import InputError
from odvae.vae_batches import Batch


def test_quarter_turns_turn_every_frame_left():
    frame = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    x = torch.stack([frame, frame + 10])[None, None]  # (1, 1, 2, 2, 3)
    once = torch.tensor([[3.0, 6.0], [2.0, 5.0], [1.0, 4.0]])
    for turns, expected in ((0, frame), (1, once), (2, frame.flip(0, 1)), (3, once.flip(0, 1))):
        turned = Transformation((2, 3), turns)(x)
        assert torch.equal(turned[0, 0], torch.stack([expected, expected + 10]))
        assert turned.shape[2:] == Transformation((2, 3), turns).grid(2)


def test_scaling_keeps_constants_and_ramps_and_does_not_alias():
    ramp = torch.arange(8.0).expand(1, 1, 1, 8, 8)
    half = Transformation((4, 4), 0)(ramp)[0, 0, 0]
    assert torch.allclose(half[:, 1:3], torch.tensor([2.5, 4.5]).expand(4, 2), atol=1e-5)  # centers of pairs
    stripes = (torch.arange(8) % 2).float().expand(1, 1, 1, 8, 8)
    assert torch.allclose(Transformation((4, 4), 0)(stripes)[..., 1:3], torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(Transformation((3, 5), 1)(torch.full((1, 2, 3, 8, 8), 0.7)), torch.tensor(0.7))


def test_a_video_is_scaled_by_its_positions_and_keeps_its_type():
    video = torch.zeros(1, 3, 5, 64, 32, dtype=torch.bfloat16)
    changed = Transformation((3, 2), 1)(video, positions=16)  # 4x2 latents of a VAE with 16x16 compression
    assert changed.shape == (1, 3, 5, 32, 48)
    assert changed.dtype == torch.bfloat16


def test_steps_are_transformed_by_their_probability_with_uniform_scales_and_turns():
    settings = EquivarianceSettings(probability=0.4, min_scale=0.25)
    drawn = [draw_transformation(settings, (5, 64, 32), 0, "video VAE", step) for step in range(3000)]
    changed = [transformation for transformation in drawn if transformation is not None]
    assert len(changed) / 3000 == pytest.approx(0.4, abs=0.03)
    heights = torch.tensor([transformation.size[0] for transformation in changed]).float()
    assert heights.min() >= 16
    assert heights.max() <= 64
    assert heights.mean() == pytest.approx(40, abs=1.5)
    turns = [transformation.quarter_turns for transformation in changed]
    assert all(turns.count(k) / len(turns) == pytest.approx(1 / 3, abs=0.05) for k in (1, 2, 3))
    assert drawn == [draw_transformation(settings, (5, 64, 32), 0, "video VAE", step) for step in range(3000)]
    still = EquivarianceSettings(probability=1.0, quarter_turns=False)
    assert {draw_transformation(still, (1, 4, 4), 0, "x", step).quarter_turns for step in range(50)} == {0}


class Blocks(nn.Module):
    """A VAE without noise: latents are the means of blocks of 2 x r x r pixels, each decoded to one color."""

    def __init__(self, ratio):
        super().__init__()
        self.temporal_compression_ratio, self.spatial_compression_ratio = 2, ratio
        self.config = type("config", (), {"latent_channels": 3})

    def reconstruct(self, video, noise=None, change_latents=None):
        ratio = (self.temporal_compression_ratio, self.spatial_compression_ratio, self.spatial_compression_ratio)
        latents = F.avg_pool3d(torch.cat([video[:, :, :1], video], dim=2), ratio)
        latents = latents if change_latents is None else change_latents(latents)
        return F.interpolate(latents, scale_factor=ratio)[:, :, 1:], latents, torch.zeros_like(latents)


@pytest.mark.parametrize("ratio", [4, 8, 16])
def test_an_equivariant_vae_has_no_error_at_any_compression(ratio):
    """Of a video of constant blocks: turned latents are decoded to the turned video, which the step compares with."""
    vae = Blocks(ratio)
    settings = RegularizerSettings(equivariance=EquivarianceSettings(probability=1.0, min_scale=1.0))
    changes = LatentChanges(settings, vae, 0, "video VAE")
    module = changes.trained_module(DATA, has_lpips=False)
    assert not list(module.parameters())  # no vector without masking
    colors = torch.rand(2, 3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    video = F.interpolate(colors, scale_factor=(2, ratio, ratio))[:, :, 1:]
    for step in range(6):
        target, *drawn = changes.draw(Batch(video, "posterior", [0, 1]), step)
        assert target.shape != video.shape or not torch.equal(target, video)
        assert torch.allclose(module(video, None, *drawn)[0], target)


def test_an_equivariant_vae_follows_scales():
    """A ramp that is scaled stays a ramp: the reconstruction of its scaled latents is the scaled video's, but for the
    steps between blocks and the edges."""
    vae = Blocks(4)
    settings = RegularizerSettings(
        equivariance=EquivarianceSettings(probability=1.0, quarter_turns=False, min_scale=0.5)
    )
    changes = LatentChanges(settings, vae, 0, "video VAE")
    video = torch.linspace(-1, 1, 64).expand(1, 3, 3, 64, 64).contiguous()
    for step in range(4):
        target, *drawn = changes.draw(Batch(video, "posterior", [0]), step)
        found = changes.trained_module(DATA, has_lpips=False)(video, None, *drawn)[0]
        assert found.shape == target.shape != video.shape
        block_means = F.avg_pool3d(target, (1, 4, 4))[..., 1:-1]
        assert torch.allclose(F.avg_pool3d(found, (1, 4, 4))[..., 1:-1], block_means, atol=0.02)


def test_the_smallest_scale_is_checked_for_lpips():
    check_smallest_clip(0.25, 256, 128, 8)
    with pytest.raises(InputError, match=r"min_scale=0\.25 scales clips of 256x64 down to 16 pixels, but LPIPS"):
        check_smallest_clip(0.25, 256, 64, 8)
