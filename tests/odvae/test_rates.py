"""Compression rates: shapes, causality, streaming, saving, and what is refused."""

import pytest
import torch
from small import REPOSITORY, SMALL, relative_error
from vaes_of_rates import RATES, WIDTHS, make_vae, noise

from odvae import ODVAE, initial_weights
from odvae.architecture.frame_counts import latent_frames
from odvae.architecture.settings import ModelSettings
from odvae.running.errors import InputError
from odvae.settings import VAESettings
from odvae.video_vae import compression_of


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
