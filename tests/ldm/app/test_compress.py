"""Compression behind the page: what the VAE itself gives, in pictures and numbers; clear errors for dropped files."""

import re

import pytest
import torch
from small_app import small_model, video_bytes

from ldm.app.compress import channel_pictures, clip_size, compress, compress_clip
from ldm.app.limits import Limits
from odvae.metrics import psnr
from odvae.running.errors import InputError
from odvae.video.pixels import to_float
from odvae.video.video_io import decode


@pytest.fixture(scope="module")
def model():
    return small_model(limits=Limits(upload_mb=1, file_pixels=100 * 100, clip_pixels=17 * 40 * 64))


def test_a_clip_in_its_own_size_is_what_the_vae_makes_of_it(model):
    data = video_bytes()
    made = compress_clip(model, data, "x.mp4", 9, 40)
    frames = torch.stack([torch.from_numpy(frame) for frame in decode(data, "x.mp4")])
    video = to_float(frames[:9])[None]
    with torch.no_grad():
        mean = model.pipeline.vae.encode(video).latent_dist.mean
        expected = model.pipeline.vae.decode(mean).sample.clamp(-1, 1)
    assert torch.equal(made.video, video)
    assert torch.equal(made.mean, mean)
    assert torch.equal(made.reconstruction, expected)
    assert made.fps == 8
    assert torch.allclose(made.difference, (4 * (video - expected).abs() - 1).clamp(max=1))


def test_the_page_has_three_videos_a_picture_a_channel_and_the_numbers(model):
    made = compress_clip(model, video_bytes(), "x.mp4", 9, 40)
    page = compress(model, video_bytes(), "<i>x</i>.mp4", 9, 40)
    assert page.count("data:video/mp4") == 3
    assert page.count("data:image/png") == 4
    assert "&lt;i&gt;x&lt;/i&gt;.mp4: the first 9 frames of 64x40" in page
    assert f"{float(psnr(made.reconstruction, made.video)[0]):.2f} dB" in page
    assert "4x3x5x8" in page
    bits = 16 * 4 * 3 * 5 * 8 / (9 * 40 * 64)
    assert f"{bits:.2f} bits/pixel" in page
    assert len(re.findall(r"\d bits/pixel", page)) == 2


def test_a_channel_is_blue_below_its_mean_and_red_above():
    latents = torch.full((1, 1, 1, 2, 2), -1.0)
    latents[..., 1] = 1.0
    (picture,) = channel_pictures(latents)
    left, right = picture[10, 10].astype(int), picture[10, -10].astype(int)
    assert left[2] > left[0] + 20
    assert right[0] > right[2] + 20


def test_a_channel_of_one_position_is_at_its_mean():
    (one,), (even,) = (channel_pictures(torch.ones(1, 1, *size)) for size in ((1, 1, 1), (1, 2, 2)))
    assert (one[len(one) // 2, one.shape[1] // 2] == even[len(even) // 2 + 2, even.shape[1] // 2 + 2]).all()


@pytest.mark.parametrize(
    ("size", "side", "factor", "expected"),
    [
        ((40, 64), 40, 8, (40, 64)),
        ((480, 640), 48, 8, (48, 64)),
        ((1080, 60), 48, 8, (864, 48)),
        ((30, 30), 15, 1, (16, 16)),
    ],
)
def test_sizes_keep_the_shape_and_suit_the_vae(size, side, factor, expected):
    assert clip_size(*size, side, factor) == expected


@pytest.mark.parametrize(
    ("data", "frames", "side", "message"),
    [
        (b"just a text, no video", 9, 32, r"x\.mp4: cannot be decoded as a video .*it is text"),
        (b"", 9, 32, r"x\.mp4: the file is empty"),
        (video_bytes()[:600], 9, 32, r"x\.mp4: "),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", 1, 32, r"x\.mp4: "),
        (bytes(1_000_001), 9, 32, r"x\.mp4 has 1\.0 MB; at most 1 MB are allowed"),
        (video_bytes(1, 102, 104), 1, 32, r"x\.mp4 has frames of 104x102 pixels"),
        (video_bytes(), 13, 32, r"x\.mp4 has 12 frames, but 13 are to be compressed: choose fewer"),
        (video_bytes(), 8, 32, r"the number of frames must be 4k\+1, .* found 8, nearest: 5 or 9"),
        (video_bytes(), None, 32, "the number of frames must be a whole number, found None"),
        (video_bytes(), 9, 4, "the shorter side must be from 16 to 4096, found 4"),
        (video_bytes(), 9, 96, "9 frames of 152x96 have 0.1 million pixels; at most 0.0 million"),
    ],
)  # fmt: skip
def test_what_cannot_be_compressed_is_explained(model, data, frames, side, message):
    with pytest.raises(InputError, match=message):
        compress_clip(model, data, "x.mp4", frames, side)
