"""What a VAE computes that begins from an image VAE or from a VAE of a lower rate."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from small import relative_error
from torch import Tensor
from vaes_of_rates import RATES, WIDTHS, make_image_vae, make_vae, noise

from odvae import ODVAE
from odvae.architecture.rates import Halvings, choose_growth, choose_halvings
from odvae.running.errors import InputError


@pytest.mark.parametrize("ratios", RATES, ids=str)
@pytest.mark.parametrize("variant", [1, 2, 3, 4])
def test_tail_initialization_is_the_image_vae_on_every_rth_frame_with_frames_repeated(ratios, variant):
    r, s = ratios
    image_vae = make_image_vae(WIDTHS[s])
    vae = ODVAE.from_image_vae(image_vae, variant, temporal_compression_ratio=r).eval()
    assert (vae.temporal_compression_ratio, vae.spatial_compression_ratio) == ratios
    video = noise(1, 3, 2 * r + 1, s, 2 * s)
    with torch.no_grad():
        expected = torch.stack([image_vae.encode(video[:, :, r * i]).latent_dist.mean for i in range(3)], dim=2)
        assert relative_error(vae.encode(video).latent_dist.mean, expected) < 1e-5
        held = [image_vae.decode(expected[:, :, -(-i // r)]).sample for i in range(2 * r + 1)]
        assert relative_error(vae.decode(expected).sample, torch.stack(held, dim=2)) < 1e-5


@contextmanager
def at_lower_resolution(vae, factor: int):
    """`vae` with the features after conv_in averaged and those before the last norm repeated, factor x factor each."""
    plane = (1, factor, factor) if isinstance(vae, ODVAE) else (factor, factor)
    mean = F.avg_pool3d if isinstance(vae, ODVAE) else F.avg_pool2d

    def repeat(module, given):
        return F.interpolate(given[0], scale_factor=plane), *given[1:]

    with torch.no_grad():
        hooks = [
            vae.encoder.conv_in.register_forward_hook(lambda module, given, x: mean(x, plane)),
            vae.decoder.conv_norm_out.register_forward_pre_hook(repeat),
        ]
        yield vae
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("ratios", [(1, 16), (4, 16), (8, 16), (4, 32)], ids=str)
@pytest.mark.parametrize("variant", [1, 4])
def test_16x_in_space_from_an_image_vae_of_8x_is_that_vae_at_half_the_resolution_inside(ratios, variant):
    r, s = ratios
    image_vae = make_image_vae(WIDTHS[8])
    rate = {"temporal_compression_ratio": r, "spatial_compression_ratio": s}
    vae = ODVAE.from_image_vae(image_vae, variant, **rate).eval()
    video = noise(1, 3, r + 1, s, 2 * s)
    with at_lower_resolution(image_vae, s // 8):
        expected = torch.stack([image_vae.encode(video[:, :, r * i]).latent_dist.mean for i in range(2)], dim=2)
        held = [image_vae.decode(expected[:, :, -(-i // r)]).sample for i in range(r + 1)]
    with torch.no_grad():
        assert relative_error(vae.encode(video).latent_dist.mean, expected) < 1e-5
        assert relative_error(vae.decode(expected).sample, torch.stack(held, dim=2)) < 1e-5


@contextmanager
def at_lower_frame_rate(vae: ODVAE, level: int):
    """`vae` that keeps every second frame after `level`'s downsampler, and repeats each in the decoder there."""
    up = len(vae.decoder.up_blocks) - 2 - level

    def repeat(module, given, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2)[:, :, 1:]  # the first frame is not repeated

    hooks = [
        vae.encoder.down_blocks[level].downsamplers[0].register_forward_hook(lambda module, given, x: x[:, :, ::2]),
        vae.decoder.up_blocks[up].upsamplers[0].register_forward_hook(repeat),
    ]
    with torch.enable_grad():  # whole clips: in pieces, the hooks would count each piece's frames from 0
        yield vae
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("variant", [1, 2, 3, 4])
@pytest.mark.parametrize(("before", "after", "level"), [((4, 8), (8, 8), 0), ((2, 8), (4, 8), 1), ((1, 4), (2, 4), 1)])
def test_growth_in_time_keeps_every_second_frame_of_a_level_and_repeats_it(before, after, level, variant):
    source = make_vae(before, variant)
    grown = ODVAE.from_odvae(source, temporal_compression_ratio=after[0]).eval()
    video = noise(1, 3, 2 * after[0] + 1, 2 * after[1], after[1])
    with at_lower_frame_rate(source, level):
        expected = source.encode(video).latent_dist.mean
        decoded = source.decode(expected).sample
    with torch.no_grad():
        latents = grown.encode(video).latent_dist.mean
        assert relative_error(latents, expected) < 1e-5
        assert relative_error(grown.decode(latents).sample, decoded) < 1e-5
        if variant > 2 and level == 0:  # level 0 and conv_in see single frames
            assert relative_error(latents, source.encode(video[:, :, ::2]).latent_dist.mean) < 1e-5
        if variant == 3 and level == 0:  # also in the decoder
            expected = source.decode(latents).sample.repeat_interleave(2, dim=2)[:, :, 1:]
            assert relative_error(grown.decode(latents).sample, expected) < 1e-5


@pytest.mark.parametrize("variant", [1, 4])
def test_growth_in_space_is_the_vae_at_half_the_resolution_inside(variant):
    source = make_vae((4, 8), variant)
    grown = ODVAE.from_odvae(source, spatial_compression_ratio=16).eval()
    assert grown.halvings == Halvings((False, False, True, True), (True,) * 4)
    video = noise(1, 3, 9, 32, 16)
    with at_lower_resolution(source, 2):
        expected = source.encode(video).latent_dist.mean
        decoded = source.decode(expected).sample
    with torch.no_grad():
        assert relative_error(grown.encode(video).latent_dist.mean, expected) < 1e-5
        assert relative_error(grown.decode(expected).sample, decoded) < 1e-5


def test_growth_in_time_beyond_the_levels_adds_one_that_takes_every_second_frame():
    source = make_vae((4, 4), variant=3)
    grown = ODVAE.from_odvae(source, temporal_compression_ratio=8).eval()
    assert grown.halvings == Halvings((True, True, True), (False, True, True))
    video = noise(1, 3, 17, 8, 8)
    with torch.no_grad():
        latents = grown.encode(video).latent_dist.mean
        assert relative_error(latents, source.encode(video[:, :, ::2]).latent_dist.mean) < 1e-5
        repeated = source.decode(latents).sample.repeat_interleave(2, dim=2)[:, :, 1:]
        assert relative_error(grown.decode(latents).sample, repeated) < 1e-5


def test_a_vae_grown_by_nothing_is_a_copy():
    source = make_vae((4, 8))
    copy = ODVAE.from_odvae(source, norm="clip")
    assert copy.config.norm == "clip"
    state = copy.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("ratios", [(8, 8), (8, 4), (4, 16)], ids=str)
def test_new_layers_all_learn_from_the_first_steps(ratios):
    """A zero convolution after a zero one would never change."""
    before = make_vae((4, ratios[1] if ratios[0] == 8 else 8))
    grown = ODVAE.from_odvae(before, temporal_compression_ratio=ratios[0], spatial_compression_ratio=ratios[1]).train()
    optimizer = torch.optim.SGD(grown.parameters(), lr=1e-3)
    for _ in range(2):
        loss = grown(noise(1, 3, 2 * ratios[0] + 1, 2 * ratios[1], ratios[1])).sample.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [name for name, parameter in grown.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert all("to_k.bias" in name for name in still), still  # softmax does not depend on the keys' bias


def test_the_latents_normalization_of_an_image_vae_is_kept():
    image_vae = make_image_vae(WIDTHS[8], scaling_factor=1.5305, shift_factor=0.0609, latent_channels=16)
    vae = ODVAE.from_image_vae(image_vae)
    z = noise(1, 16, 1, 1, 1)
    mean, std = (torch.tensor(vae.config[name]).view(1, 16, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert torch.allclose((z - mean) / std, (z - 0.0609) * 1.5305)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_compression_ratio": 4}, "=4 cannot begin from a VAE that compresses by 8"),
        ({"spatial_compression_ratio": 24}, "=24 cannot begin from a VAE that compresses by 8"),
        ({"temporal_compression_ratio": 6}, "=6 cannot begin from a VAE that compresses by 1"),
        (
            {"spatial_compression_ratio": 16, "spatial_downsample": [True, True, True, True, False]},
            "must end with the places of the VAE they grow from",
        ),
    ],
)
def test_a_rate_that_an_image_vae_cannot_grow_to_is_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        ODVAE.from_image_vae(make_image_vae(WIDTHS[8]), **arguments)
    with pytest.raises(InputError, match="=2 cannot begin from a VAE that compresses by 4"):
        ODVAE.from_odvae(make_vae((4, 8)), temporal_compression_ratio=2)


def test_time_can_be_halved_at_chosen_levels_and_growth_keeps_them():
    early = choose_halvings(4, 2, 8, temporal_downsample=[True, False, False])
    assert early == Halvings((True, False, False), (True, True, True))
    assert choose_growth((8, 8, 8, 8), early, 4).halvings.time == (True, False, True)
    with pytest.raises(InputError, match=r"must end with the places .* time \[True, False, False\]"):
        choose_growth((8, 8, 8, 8), early, 4, temporal_downsample=[False, True, True])
