"""Invalid inputs of `encode` and `decode` are refused with a clear message; valid inputs are not."""

import pytest
import torch

from odvae.architecture.input_checks import check_pixel_values
from odvae.running.errors import InputError

VIDEO = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def with_value(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x.view(-1)[7] = value
    return x


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8), "floats in \\[-1, 1\\], found torch.uint8; convert 0..255"),
        ((VIDEO + 1) * 127.5, "in \\[-1, 1\\], found 0.0.* to 254.*video / 127.5 - 1"),
        (with_value(VIDEO, float("inf")), "in \\[-1, 1\\], found -0.9.* to inf"),
        (with_value(VIDEO, float("nan")), "NaN pixels"),
        (torch.zeros(1, 4, 5, 16, 16), "a video must be \\(batch, 3, .*found \\(1, 4, 5, 16, 16\\)"),
        (torch.zeros(1, 3, 7, 16, 16), "4k\\+1, .*found 7, nearest: 5 or 9"),
        (torch.zeros(1, 3, 5, 225, 231), "height must be a multiple of 8, .*found 225"),
    ],
)
def test_an_invalid_video_is_an_error(vae, video, message):
    with pytest.raises(InputError, match=message):
        vae.encode(video)


def test_streams_check_their_chunks(vae):
    with pytest.raises(InputError, match=r"found 0.* to 25"):
        next(vae.encode_stream([(VIDEO + 1) * 127.5]))
    with pytest.raises(InputError, match="NaN or infinite"):
        next(vae.decode_stream([torch.full((1, 4, 1, 2, 2), float("nan"))]))


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(1, 8, 2, 2, 2), "latents must be \\(batch, 4, .*found \\(1, 8, 2, 2, 2\\)"),
        (torch.zeros(4, 2, 2, 2), "latents must be"),
        (torch.zeros(1, 4, 2, 2, 2, dtype=torch.int64), "floats, found torch.int64"),
        (torch.full((1, 4, 2, 2, 2), float("nan")), "NaN or infinite"),
        (torch.full((1, 4, 2, 2, 2), float("inf")), "NaN or infinite"),
    ],
)
def test_invalid_latents_are_an_error(vae, latents, message):
    with pytest.raises(InputError, match=message):
        vae.decode(latents)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_overshoot_and_noise_are_accepted_in_every_float_type(dtype):
    check_pixel_values((1.05 * VIDEO).to(dtype))
    check_pixel_values(torch.randn(1, 3, 9, 64, 64, dtype=torch.float32).to(dtype))


def test_a_training_step_reads_no_values_but_checks_shapes(vae):
    with torch.no_grad():
        assert vae.reconstruct(with_value(VIDEO, float("nan")))[0].isnan().any()
        with pytest.raises(InputError, match="4k\\+1"):
            vae.reconstruct(VIDEO[:, :, :4])


def test_the_values_are_not_read_where_they_cannot_be():
    def double(video: torch.Tensor) -> torch.Tensor:
        check_pixel_values(video)
        return 2 * video

    compiled = torch.compile(double, backend="eager", fullgraph=True)  # fullgraph: reading a value would be an error
    assert torch.equal(compiled(VIDEO), 2 * VIDEO)
    double(torch.zeros(1, 3, 5, 16, 16, device="meta"))
    double(VIDEO[:, :, :0])
