"""3D convolutions on a CPU use oneDNN without gradients, with the same results as torch's kernels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small import relative_error
from torch import nn
from torch.profiler import ProfilerActivity, profile

from odvae.architecture.layers import conv3d, from_frames, to_frames
from odvae.measuring import count_flops


def kernels(work) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as record:
        work()
    return {event.key for event in record.key_averages()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("channels", "out_channels", "size", "kernel", "stride", "padding"),
    [
        (16, 24, (3, 9, 11), 3, (1, 1, 1), (0, 1, 1)),
        (16, 16, (5, 9, 9), 3, (2, 2, 2), (0, 0, 0)),
        (3, 8, (3, 8, 8), 3, (1, 1, 1), (0, 1, 1)),
        (8, 8, (2, 6, 6), 1, (1, 1, 1), (0, 0, 0)),
        (8, 32, (3, 7, 7), 2, (1, 1, 1), (0, 0, 0)),
    ],
)
def test_a_small_convolution_equals_torchs_up_to_rounding(
    channels, out_channels, size, kernel, stride, padding, layout
):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, *size, generator=generator).to(memory_format=layout)
    weight = torch.randn(out_channels, channels, *[kernel] * 3, generator=generator).to(memory_format=layout)
    bias = torch.randn(out_channels, generator=generator)
    for video in (x, x[:, :, :, 1:, :-1]):  # a window into a larger video too
        expected = F.conv3d(video, weight, bias, stride, padding)
        with torch.no_grad():
            found = conv3d(video, weight, bias, stride, padding)
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-5


def test_where_torch_chooses_onednn_too_the_result_is_the_same_to_the_last_bit():
    x = torch.randn(1, 32, 3, 220, 12, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.randn(16, 32, 3, 3, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(16)
    with torch.no_grad():
        assert "aten::mkldnn_convolution" in kernels(lambda: F.conv3d(x, weight, bias))
        assert torch.equal(conv3d(x, weight, bias), F.conv3d(x, weight, bias))


def test_torchs_naive_convolution_is_used_only_with_gradients(vae):
    video, latents = torch.randn(1, 3, 9, 16, 16), torch.randn(1, 4, 3, 2, 2)

    def infer():
        with torch.no_grad():
            vae.encode(video)
            vae.decode(latents)
            vae(video)
        list(vae.encode_stream(video.split(4, dim=2)))
        list(vae.decode_stream(latents.split(1, dim=2)))

    naive = "aten::slow_conv3d_forward"
    assert naive not in kernels(infer)
    assert naive in kernels(lambda: vae.encode(video))  # the test can fail


def test_autocast_double_precision_and_no_onednn_keep_torchs_choice(monkeypatch):
    x, weight, bias = torch.randn(1, 4, 3, 5, 5), torch.randn(4, 4, 3, 3, 3), torch.randn(4)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert conv3d(x, weight, bias).dtype == torch.bfloat16
        assert conv3d(x.double(), weight.double(), bias.double()).dtype == torch.float64
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        assert "aten::mkldnn_convolution" not in kernels(lambda: conv3d(x, weight, bias))


def test_the_operations_counted_are_those_of_the_meta_device(vae):
    shapes, video = copy.deepcopy(vae).to("meta"), torch.zeros(1, 3, 5, 16, 16)
    with torch.no_grad():
        counted = count_flops(lambda: vae(video))
        # torch 2.14 counts attention on the meta device a little differently.
        assert counted == pytest.approx(count_flops(lambda: shapes(video.to("meta"))), rel=1e-3)
        assert counted > 0


def test_torch_exports_the_split_into_frames_with_a_dynamic_number_of_them():
    class Split(nn.Module):
        def forward(self, x):
            return from_frames(to_frames(x), len(x))

    frames = torch.export.Dim("frames", min=2, max=8)
    program = torch.export.export(Split(), (torch.rand(1, 2, 5, 4, 4),), dynamic_shapes=({2: frames},)).module()
    for count in (2, 7):
        x = torch.rand(1, 2, count, 4, 4)
        assert torch.equal(program(x), x)
