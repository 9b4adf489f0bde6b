"""Tiling: one tile equals the whole, several tiles approximate it, tiles have equal size, blending weights."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import relative_error

from odvae import ODVAE
from odvae.architecture.tiling import blend_weights, place_tiles, run_in_groups, run_in_tiles
from odvae.running.errors import InputError

EIGHTS = st.integers(1, 60).map(lambda n: 8 * n)


@pytest.fixture(params=["frame", "clip"])
def tiled(request, vae) -> ODVAE:
    """The small VAE in each mode, the same weights, to be tiled by the test."""
    upsample = {"frame": "nearest", "clip": "trilinear"}[request.param]
    copy = ODVAE.from_config(vae.config, norm=request.param, temporal_upsample=upsample)
    copy.load_state_dict(vae.state_dict())
    return copy.eval().requires_grad_(False)


def random_video(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def encode(vae: ODVAE, video: torch.Tensor) -> torch.Tensor:
    return vae.encode(video).latent_dist.mean


# --- time


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_a_video_of_one_tile_is_bit_equal_to_the_whole(tiled, frames):
    video = random_video(1, 3, frames, 16, 24)
    latents = encode(tiled, video)
    decoded = tiled.decode(latents).sample
    tiled.enable_tiling(16, 24, tile_sample_min_num_frames=9)
    assert torch.equal(encode(tiled, video), latents)
    assert torch.equal(tiled.decode(latents).sample, decoded)


def test_without_tiling_the_network_gets_the_whole_video(vae, monkeypatch):
    for name in ("_encode_tiled", "_decode_tiled", "_encode_in_space", "_decode_in_space", "_tiles"):
        monkeypatch.setattr(vae, name, None)
    video = random_video(1, 3, 5, 16, 16)
    assert vae(video)[0].shape == vae.decode(vae.encode(video).latent_dist.mean).sample.shape == video.shape


def test_groups_share_a_frame_and_drop_its_second_copy(tiled):
    video = random_video(1, 3, 21, 16, 16)  # groups of 9, 9 and 5 frames
    expected = torch.cat([
        encode(tiled, video[:, :, :9]),
        encode(tiled, video[:, :, 8:17])[:, :, 1:],
        encode(tiled, video[:, :, 16:])[:, :, 1:],
    ], dim=2)  # fmt: skip
    pieces = [tiled.decode(expected[:, :, a:b]).sample for a, b in ((0, 3), (2, 5), (4, 6))]
    decoded = torch.cat([pieces[0], pieces[1][:, :, 1:], pieces[2][:, :, 1:]], dim=2)
    tiled.enable_tiling(None, None, tile_sample_min_num_frames=9)
    assert torch.equal(encode(tiled, video), expected)
    assert torch.equal(tiled.decode(expected).sample, decoded)
    assert decoded.shape == video.shape


def test_several_temporal_tiles_approximate_the_whole_until_tiling_is_disabled(tiled):
    video = random_video(1, 3, 17, 16, 16)
    latents = encode(tiled, video)
    decoded = tiled.decode(latents).sample
    tiled.enable_tiling(None, None, tile_sample_min_num_frames=9)
    assert 1e-3 < relative_error(encode(tiled, video), latents) < 1
    assert 1e-3 < relative_error(tiled.decode(latents).sample, decoded) < 1
    first_group_is_exact = relative_error(encode(tiled, video)[:, :, :3], latents[:, :, :3]) < 1e-5
    assert first_group_is_exact == (tiled.config.norm == "frame")
    tiled.disable_tiling()
    assert torch.equal(encode(tiled, video), latents)
    assert torch.equal(tiled.decode(latents).sample, decoded)


def test_temporal_tiles_cover_every_length_once():
    for frames in range(1, 40):
        x = torch.arange(frames).view(1, 1, frames, 1, 1)
        for group in (2, 3, 9, None):
            assert torch.equal(run_in_groups(lambda part: part, x, group), x)


# --- space


def calls_of(module: torch.nn.Module, monkeypatch, out_channels: int, result_shape) -> list:
    """The shapes a module is called with; it returns zeros instead of working."""
    seen = []

    def forward(x, cache=None):
        seen.append(tuple(x.shape[2:]))
        return torch.zeros(1, out_channels, *result_shape(*x.shape[2:]))

    monkeypatch.setattr(module, "forward", forward)
    return seen


def test_one_network_call_per_temporal_tile_if_the_frame_is_one_spatial_tile(tiled, monkeypatch):
    encoder = calls_of(tiled.encoder, monkeypatch, 8, lambda t, h, w: ((t - 1) // 4 + 1, h // 8, w // 8))
    decoder = calls_of(tiled.decoder, monkeypatch, 3, lambda t, h, w: ((t - 1) * 4 + 1, h * 8, w * 8))
    tiled.enable_tiling(tile_sample_min_height=256, tile_sample_min_width=256, tile_sample_min_num_frames=33)
    latents = encode(tiled, torch.zeros(1, 3, 97, 256, 256))
    assert encoder == [(33, 256, 256)] * 3
    assert tiled.decode(latents).sample.shape == (1, 3, 97, 256, 256)
    assert decoder == [(9, 32, 32)] * 3


@pytest.mark.parametrize("width", [8, 224, 232, 256, 264, 456, 1000])
def test_encoder_and_decoder_use_the_same_tiles_all_of_full_size(tiled, monkeypatch, width):
    encoder = calls_of(tiled.encoder, monkeypatch, 8, lambda t, h, w: (t, h // 8, w // 8))
    decoder = calls_of(tiled.decoder, monkeypatch, 3, lambda t, h, w: (t, h * 8, w * 8))
    tiled.enable_tiling()
    tiled.decode(encode(tiled, torch.zeros(1, 3, 1, 264, width)))
    assert encoder == [(t, 8 * h, 8 * w) for t, h, w in decoder]
    assert set(encoder) == {(1, 256, min(width, 256))}


@pytest.mark.parametrize("width", [8, 16, 24, 32, 40, 88])
def test_every_multiple_of_8_goes_through(tiled, width):
    tiled.enable_tiling(16, 32, None)
    video = random_video(1, 3, 5, 24, width)
    latents = encode(tiled, video)
    assert latents.shape == (1, 4, 2, 3, width // 8)
    decoded = tiled.decode(latents).sample
    assert decoded.shape == video.shape
    assert decoded.isfinite().all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(length=EIGHTS, size=EIGHTS, data=st.data())
def test_tiles_cover_everything_at_full_size(length, size, data):
    stride = data.draw(st.integers(1, size // 8).map(lambda n: 8 * n))
    tiles = place_tiles(length, size, stride)
    assert tiles[0][0] == 0
    assert tiles[-1][1] == length
    assert {end - start for start, end in tiles} == {min(length, size)}
    gaps = {after[0] - before[0] for before, after in pairwise(tiles)}
    assert all(0 < gap <= stride and gap % 8 == 0 for gap in gaps)

    weights = blend_weights(tiles)  # float64
    assert (weights > 0).all()
    total = torch.zeros(length, dtype=torch.float64)
    for (start, end), weight in zip(tiles, weights, strict=True):
        total[start:end] += weight
    assert (total - 1).abs().max() < 1e-14


def test_the_overlap_is_a_straight_line_from_one_tile_to_the_next():
    weights = blend_weights([(0, 8), (5, 13)])
    assert torch.allclose(weights[0], torch.tensor([1, 1, 1, 1, 1, 0.75, 0.5, 0.25], dtype=torch.float64))
    assert torch.allclose(weights[1], weights[0].flip(0))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(height=st.integers(1, 9), width=st.integers(1, 9), size=st.integers(1, 6), data=st.data())
def test_a_pointwise_network_is_tiled_exactly(height, width, size, data):
    stride = data.draw(st.integers(1, size))
    rows, columns = (place_tiles(8 * length, 8 * size, 8 * stride) for length in (height, width))
    video = torch.randn(2, 3, 2, 8 * height, 8 * width, dtype=torch.float64)

    def down(x, cache):
        return F.avg_pool3d(x, (1, 8, 8))

    def up(x, cache):
        return x.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)

    latents = down(video, None)
    assert torch.allclose(run_in_tiles(down, video, rows, columns, 1, 8), latents, rtol=0, atol=1e-12)
    assert torch.allclose(run_in_tiles(up, latents, rows, columns, 8, 1), up(latents, None), rtol=0, atol=1e-12)


def test_a_network_with_a_3x3_receptive_field_differs_only_near_the_tiles_borders():
    x = torch.randn(1, 1, 1, 48, 48, dtype=torch.float64)
    kernel = torch.ones(1, 1, 1, 3, 3, dtype=torch.float64)

    def blur(x, cache):
        return F.conv3d(x, kernel, padding=(0, 1, 1))

    tiles = [(0, 32), (16, 48)]
    difference = (run_in_tiles(blur, x, tiles, tiles, 1, 1) - blur(x, None)).abs()[0, 0, 0]
    border = torch.zeros(48, dtype=torch.bool)
    border[[16, 31]] = True  # where a tile begins or ends inside the picture
    inside = ~(border[:, None] | border)
    assert difference[inside].max() < 1e-12
    assert difference[~inside].max() > 1e-3


def test_spatial_tiles_approximate_the_whole_better_with_more_overlap(tiled):
    video = F.interpolate(random_video(1, 3, 5, 8, 8), size=(5, 64, 64), mode="trilinear")  # smooth, as pictures are
    latents = encode(tiled, video)
    errors = []
    for stride in (32, 16, 8):
        tiled.enable_tiling(32, 32, None, stride, stride)
        errors.append(relative_error(encode(tiled, video), latents))
    assert 1 > errors[0] > errors[1] > errors[2] > 1e-4
    tiled.disable_tiling()
    assert torch.equal(encode(tiled, video), latents)


def test_tiled_results_keep_their_type_and_carry_gradients(vae):
    copy = ODVAE.from_config(vae.config)
    copy.enable_tiling(16, 16, None)
    latents = torch.randn(1, 4, 1, 3, 3, requires_grad=True)
    copy.decode(latents).sample.sum().backward()
    assert (latents.grad != 0).all()
    half = copy.to(torch.bfloat16)
    assert half.decode(latents.detach().bfloat16()).sample.dtype == torch.bfloat16


def test_a_stream_in_spatial_tiles_equals_the_whole_in_spatial_tiles(vae):
    copy = ODVAE.from_config(vae.config).eval()
    copy.load_state_dict(vae.state_dict())
    copy.enable_tiling(16, 24, None)
    video = random_video(1, 3, 9, 24, 40)
    with torch.no_grad():
        whole = encode(copy, video)
        parts = copy.encode_stream(video.split([3, 6], dim=2))
        assert relative_error(torch.cat([part.mean for part in parts], dim=2), whole) < 1e-5
        pieces = copy.decode_stream(whole.split([2, 1], dim=2))
        assert relative_error(torch.cat(list(pieces), dim=2), copy.decode(whole).sample) < 1e-5
        copy.disable_tiling()
        assert relative_error(whole, encode(copy, video)) > 1e-4  # the tiles were really there


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tile_sample_min_num_frames": 16}, "must be 4m\\+1, at least 5; found 16, nearest: 13 or 17"),
        ({"tile_sample_min_num_frames": 1}, "at least 5"),
        ({"tile_sample_min_height": 100}, "tile_sample_min_height=100 must be a multiple of 8"),
        ({"tile_sample_min_width": 0}, "tile_sample_min_width=0"),
        ({"tile_sample_stride_width": 264}, "tile_sample_stride_width=264 must be a multiple of 8 pixels, at most"),
        ({"tile_sample_stride_height": 0}, "tile_sample_stride_height=0"),
        ({"tile_sample_min_height": None, "tile_sample_stride_height": 8}, "which is None"),
    ],
)
def test_impossible_tiles_are_errors_and_change_nothing(tiled, sizes, message):
    with pytest.raises(InputError, match=message):
        tiled.enable_tiling(**sizes)
    assert not tiled.use_tiling
