"""Latent masking: exact shares in blocks, the same for any division of a batch; the vector that stands for latents."""

import pytest
import torch
from small_vae import DATA
from torch import nn

from odvae.regularizers.latent_masking import draw_mask, masked_fraction
from odvae.regularizers.regularized_vae import LatentChanges, RegularizedVAE
from odvae.regularizers.settings import LatentMaskingSettings, RegularizerSettings
from odvae.running.errors import InputError
from odvae.training.optimization import make_optimizer
from odvae.training.settings import OptimizationSettings
from odvae.vae_batches import Batch

MASKING = RegularizerSettings(latent_masking=LatentMaskingSettings(fractions=(0.5,), probabilities=(1.0,)))


def test_fractions_have_their_probabilities_over_steps_and_are_a_function_of_the_step():
    settings = LatentMaskingSettings()
    drawn = [masked_fraction(settings, 0, "video VAE", step) for step in range(4000)]
    for fraction, probability in zip(settings.fractions, settings.probabilities, strict=True):
        assert drawn.count(fraction) / 4000 == pytest.approx(probability, abs=0.03)
    assert drawn == [masked_fraction(settings, 0, "video VAE", step) for step in range(4000)]
    assert drawn != [masked_fraction(settings, 1, "video VAE", step) for step in range(4000)]


@pytest.mark.parametrize(("fraction", "masked"), [(0.0, 0), (0.25, 15), (0.5, 30), (0.75, 45)])
def test_the_share_of_masked_positions_is_exact(fraction, masked):
    mask = draw_mask((5, 3, 4), fraction, (1, 1, 1), 0, "x", [0, 1], "cpu")
    assert mask.shape == (2, 1, 5, 3, 4)
    assert mask.sum(dim=(1, 2, 3, 4)).tolist() == [masked, masked]
    assert masked == 0 or not torch.equal(mask[0], mask[1])


def test_blocks_are_masked_together_and_may_be_cut_at_the_end():
    """5x4x4 positions are 3x2x2 blocks of 2x2x2, of which the last along time have one frame."""
    mask = draw_mask((5, 4, 4), 0.5, (2, 2, 2), 0, "x", [3], "cpu")[0, 0]
    first = mask[::2, ::2, ::2]
    assert first.sum() == 6  # of 12 blocks
    assert torch.equal(mask, first.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)[:5])


def test_a_samples_mask_depends_on_its_number_alone():
    together = draw_mask((3, 4, 4), 0.5, (1, 1, 1), 7, "x", [4, 9], "cpu")
    apart = [draw_mask((3, 4, 4), 0.5, (1, 1, 1), 7, "x", [number], "cpu") for number in (4, 9)]
    assert torch.equal(together, torch.cat(apart))


class Identity(nn.Module):
    """The least of a VAE: latents are the video, and are decoded to themselves."""

    temporal_compression_ratio = spatial_compression_ratio = 1

    class config:
        latent_channels = 3

    def reconstruct(self, video, noise=None, change_latents=None):
        latents = video if change_latents is None else change_latents(video)
        return latents, video, torch.zeros_like(video)


def test_masked_latents_are_the_vector_and_the_others_are_untouched():
    module = LatentChanges(MASKING, Identity(), 0, "video VAE").trained_module(DATA, has_lpips=False)
    module.mask_vector.data = torch.tensor([1.0, 2.0, 3.0])
    video = torch.rand(2, 3, 2, 4, 4)
    mask = draw_mask((2, 4, 4), 0.5, (1, 1, 1), 0, "x", [0, 1], "cpu")
    decoded, mean, _ = module(video, torch.zeros(()), None, mask)
    where = mask.expand_as(video)
    assert torch.equal(decoded[~where], video[~where])
    assert torch.equal(mean, video)  # the posterior is not masked
    for channel, value in enumerate((1.0, 2.0, 3.0)):
        assert (decoded[:, channel : channel + 1][mask] == value).all()


def test_the_vector_has_the_gradient_of_the_masked_positions_and_no_weight_decay():
    module = RegularizedVAE(Identity(), masking=True)
    mask = torch.zeros(1, 1, 2, 4, 4, dtype=torch.bool)
    module(torch.rand(1, 3, 2, 4, 4), torch.zeros(()), None, mask)[0].sum().backward()
    assert module.mask_vector.grad.tolist() == [0, 0, 0]  # none is masked; still a gradient, as DDP needs
    mask[0, 0, 1, :2] = True
    module.zero_grad()
    module(torch.rand(1, 3, 2, 4, 4), torch.zeros(()), None, mask)[0].sum().backward()
    assert module.mask_vector.grad.tolist() == [8, 8, 8]
    groups = make_optimizer(module, OptimizationSettings(weight_decay=0.1)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.0)]


def test_ranks_and_micro_steps_mask_the_same_positions_of_a_sample():
    changes, video = LatentChanges(MASKING, Identity(), 0, "video VAE"), torch.rand(4, 3, 2, 4, 4)
    target, transformation, mask = changes.draw(Batch(video, "posterior", [10, 11, 12, 13]), step=5)
    assert target is video
    assert transformation is None
    parts = [changes.draw(Batch(video[i : i + 2], "posterior", [10 + i, 11 + i]), step=5)[2] for i in (0, 2)]
    assert torch.equal(mask, torch.cat(parts))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fractions": (0.5,)}, "found 1 fractions, 4 probabilities"),
        ({"fractions": (1.0,), "probabilities": (1.0,)}, "less than 1"),
        ({"probabilities": (0.7, 0.1, 0.1, 0.2)}, "their sum is 1"),
        ({"block": (0, 1, 1)}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        LatentMaskingSettings(**given)


def test_a_vae_whose_latents_cannot_be_changed_is_named():
    class Closed(Identity):
        def reconstruct(self, video, noise=None):
            return video, video, video

    with pytest.raises(InputError, match=r"latent_masking and .* Closed\.reconstruct must have an argument"):
        LatentChanges(MASKING, Closed(), 0, "video VAE").trained_module(DATA, has_lpips=False)
