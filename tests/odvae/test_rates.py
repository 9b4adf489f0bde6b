"""Compression rates: shapes, causality, streaming, and what a VAE computes that begins from one of a lower rate."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from small import REPOSITORY, SMALL, relative_error
from torch import Tensor

from odvae import ODVAE, initial_weights
from odvae.architecture.frame_counts import latent_frames
from odvae.architecture.rates import Halvings, choose_growth, choose_halvings
from odvae.architecture.settings import ModelSettings
from odvae.running.errors import InputError
from odvae.settings import VAESettings
from odvae.video_vae import compression_of

WIDTHS = {4: (8, 8, 16), 8: (8, 8, 16, 16), 16: (8, 8, 16, 16, 16), 32: (8, 8, 8, 16, 16, 16)}
RATES = [(1, 8), (2, 8), (4, 8), (8, 8), (1, 4), (4, 4), (8, 4), (4, 16), (8, 16), (4, 32)]


def make_vae(ratios: tuple[int, int], variant: int = 4, **settings) -> ODVAE:
    """A small VAE of these (temporal, spatial) ratios with random weights, in which every tensor matters."""
    torch.manual_seed(0)
    widths = (8, 8, 8, 16) if ratios == (8, 4) else WIDTHS[ratios[1]]
    sizes = {**SMALL, "block_out_channels": widths}
    vae = ODVAE(
        **sizes, variant=variant, temporal_compression_ratio=ratios[0], spatial_compression_ratio=ratios[1], **settings
    )
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vae.eval()


def make_image_vae(widths: tuple[int, ...], **settings) -> AutoencoderKL:
    torch.manual_seed(1)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    vae = AutoencoderKL(**{**SMALL, **blocks, "block_out_channels": widths, **settings})
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vae.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("ratios", RATES, ids=str)
@pytest.mark.parametrize("variant", [1, 2, 3, 4])
def test_frames_become_latents_of_the_rate_and_come_back_and_streams_equal_the_whole(ratios, variant):
    r, s = ratios
    vae = make_vae(ratios, variant)
    assert (vae.temporal_compression_ratio, vae.spatial_compression_ratio) == ratios
    video = noise(1, 3, 3 * r + 1, s, 2 * s)
    with torch.no_grad():
        latents = vae.encode(video).latent_dist.mean
        assert latents.shape == (1, 4, 4, 1, 2)
        whole = vae.decode(latents).sample
        assert whole.shape == video.shape
        for chunk in (1, 3, r, r + 1, 3 * r + 1):
            streamed = torch.cat([part.mean for part in vae.encode_stream(video.split(chunk, dim=2))], dim=2)
            assert relative_error(streamed, latents) < 1e-5
        for chunk in (1, 2, 3):
            decoded = torch.cat(list(vae.decode_stream(latents.split(chunk, dim=2))), dim=2)
            assert relative_error(decoded, whole) < 1e-5
    if r > 1:
        with pytest.raises(InputError, match=rf"frames must be {r}k\+1, .*found {r}"):
            vae.encode(video[:, :, :r])
        with pytest.raises(InputError, match=rf"must have {r}k\+1 frames, but ended {r - 1} frames"):
            list(vae.encode_stream([video[:, :, :r]]))
    with pytest.raises(InputError, match=f"width must be a multiple of {s}, .*found {s + 2}"):
        vae.encode(video[..., : s + 2])


@pytest.mark.parametrize("ratios", RATES, ids=str)
@pytest.mark.parametrize("variant", [1, 4])
def test_no_latent_and_no_decoded_frame_depends_on_later_ones(ratios, variant):
    r, s = ratios
    vae = make_vae(ratios, variant)
    video = noise(1, 3, 2 * r + 1, s, s).requires_grad_()
    latents = vae.encode(video).latent_dist.mean
    for i in range(3):
        (grad,) = torch.autograd.grad(latents[:, :, i].sum(), video, retain_graph=True)
        assert grad[:, :, r * i + 1 :].abs().sum() == 0  # the future
        assert grad[:, :, r * i].abs().sum() > 0  # the test can fail
    given = latents.detach().requires_grad_()
    decoded = vae.decode(given).sample
    for i in range(2 * r + 1):
        (grad,) = torch.autograd.grad(decoded[:, :, i].sum(), given, retain_graph=True)
        newest = -(-i // r)
        assert grad[:, :, newest + 1 :].abs().sum() == 0
        assert grad[:, :, newest].abs().sum() > 0


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


@pytest.mark.parametrize("ratios", RATES, ids=str)
def test_a_saved_vae_keeps_its_rate(ratios, tmp_path):
    vae = make_vae(ratios)
    vae.save_pretrained(tmp_path)
    loaded = ODVAE.from_pretrained(tmp_path).eval()
    assert loaded.halvings == vae.halvings
    video = noise(1, 3, ratios[0] + 1, ratios[1], ratios[1])
    with torch.no_grad():
        assert torch.equal(loaded.encode(video).latent_dist.mean, vae.encode(video).latent_dist.mean)


def test_the_modes_of_the_release_work_at_every_rate():
    for ratios in RATES:
        vae = make_vae(ratios, norm="clip", temporal_upsample="trilinear")
        video = noise(1, 3, 2 * ratios[0] + 1, ratios[1], ratios[1])
        with torch.no_grad():
            latents = vae.encode(video).latent_dist.mean
            assert vae.decode(latents).sample.shape == video.shape
        vae.enable_tiling(None, None, 2 * ratios[0] + 1)
        longer = noise(1, 3, 4 * ratios[0] + 1, ratios[1], ratios[1])
        with torch.no_grad():
            assert vae.decode(vae.encode(longer).latent_dist.mean).sample.shape == longer.shape


def test_the_latents_normalization_of_an_image_vae_is_kept():
    image_vae = make_image_vae(WIDTHS[8], scaling_factor=1.5305, shift_factor=0.0609, latent_channels=16)
    vae = ODVAE.from_image_vae(image_vae)
    z = noise(1, 16, 1, 1, 1)
    mean, std = (torch.tensor(vae.config[name]).view(1, 16, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert torch.allclose((z - mean) / std, (z - 0.0609) * 1.5305)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temporal_compression_ratio": 3}, "temporal_compression_ratio=3 must be a power of two"),
        ({"spatial_compression_ratio": 0}, "spatial_compression_ratio=0 must be a power of two"),
        ({"spatial_compression_ratio": 16}, "=16 needs 4 levels that halve and one more; block_out_channels has 4"),
        ({"temporal_downsample": [True, True, True]}, r"compresses by 8, but temporal_compression_ratio=4"),
        ({"spatial_downsample": [True, True]}, r"spatial_downsample=\[True, True\] must have 3 values"),
    ],
)
def test_a_rate_that_the_levels_cannot_give_is_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        ODVAE(**SMALL, **arguments)


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


def test_the_documented_table_of_rates_is_correct():
    rows = [
        line.split("|")[1:-1] for line in (REPOSITORY / "docs/rates.md").read_text().splitlines() if "x" in line[:9]
    ]
    table = [[cell.strip(" *") for cell in row] for row in rows if len(row) == 6 and "rate" not in row[0]]
    assert len(table) == 8
    for rate, widths, space, time, parameters, shape in table:
        ratios = tuple(int(number) for number in rate.split("x")[:2])
        with torch.device("meta"):
            vae = ODVAE(
                block_out_channels=numbers(widths),
                temporal_compression_ratio=ratios[0],
                spatial_compression_ratio=ratios[1],
            )
        assert [i for i, halved in enumerate(vae.halvings.space) if halved] == numbers(space)
        assert [i for i, halved in enumerate(vae.halvings.time) if halved] == numbers(time)
        assert f"{sum(parameter.numel() for parameter in vae.parameters()):,}" == parameters
        frames, side = latent_frames(17, ratios[0]), 256 // ratios[1]
        assert shape == f"4 x {frames} x {side} x {side}"


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]


@pytest.mark.parametrize("spatial_ratio", [4, 8, 16])
def test_the_image_phase_trains_an_image_vae_of_the_rate(spatial_ratio):
    """As `train_vae` makes it, without init_image_vae, and inflates it afterwards."""
    sizes = {**SMALL, "block_out_channels": WIDTHS[spatial_ratio], "spatial_compression_ratio": spatial_ratio}
    settings = VAESettings(model=ModelSettings(**sizes))
    image_vae = initial_weights.make_image_vae(settings.model)
    assert image_vae.spatial_compression_ratio == spatial_ratio
    assert compression_of(ODVAE.from_image_vae(image_vae)) == settings.compression == (4, spatial_ratio)
