"""Reconstruction metrics: closed forms and golden values."""

import json

import numpy as np
import pytest
import torch
import torchvision
from golden import degraded, golden_values, published_vae_values
from known_weights import known_state
from safetensors.torch import save_file

from odvae.metrics import PSNR_CEILING, lpips, psnr, ssim
from odvae.running.errors import InputError
from odvae.video.pixels import to_float

BACKBONES = {
    "alex": torchvision.models.alexnet,
    "vgg": torchvision.models.vgg16,
    "squeeze": torchvision.models.squeezenet1_1,
}


def test_psnr_and_ssim_equal_their_formulas_and_lpips_its_authors_package(tmp_path):
    reference, golden = published_vae_values()["input_9"], golden_values()
    video = degraded(reference)
    assert psnr(video, reference).item() == pytest.approx(golden["psnr"], abs=1e-5)
    assert ssim(video, reference).item() == pytest.approx(golden["ssim"], abs=1e-6)
    for network, make in BACKBONES.items():
        with torch.device("meta"):
            tensors = make(weights=None).state_dict()
        weights = str(tmp_path / f"{network}.safetensors")
        save_file(known_state({name: tensors[name].shape for name in tensors if "features." in name}), weights)
        found = lpips(video, reference, network, weights).item()
        assert found == pytest.approx(golden["lpips"][network], rel=1e-3)
        in_other_range = lpips(video / 2 + 0.5, reference / 2 + 0.5, network, weights).item()
        assert in_other_range < 0.9 * found  # the mistake would be seen


def test_psnr_and_ssim_of_real_degraded_clips(shared):
    clips = np.load(shared / "reference/metrics/clips.npz")
    golden = json.loads((shared / "reference/metrics/golden.json").read_text())["per_video"]["degraded"]
    real, degraded = (to_float(torch.from_numpy(clips[name])) for name in ("real", "degraded"))
    assert psnr(degraded, real).numpy() == pytest.approx(golden["psnr_frame_mean"], abs=2e-4)
    assert ssim(degraded, real).numpy() == pytest.approx(golden["ssim_rgb_gauss11"], abs=1e-5)


def test_psnr_of_a_known_error_uses_the_range_of_minus_one_to_one():
    video = torch.zeros(2, 3, 4, 16, 16)
    assert psnr(video + 0.2, video).tolist() == pytest.approx([20.0, 20.0])  # 10 log10(4 / 0.04)
    assert psnr(video, video).tolist() == [PSNR_CEILING] * 2


def test_psnr_is_the_mean_over_frames_not_of_the_mean_error():
    video = torch.zeros(1, 3, 2, 16, 16)
    noisy = video.clone()
    noisy[:, :, 0] += 0.2
    noisy[:, :, 1] += 0.02
    assert psnr(noisy, video).item() == pytest.approx((20 + 40) / 2)


def test_ssim_is_one_for_the_same_and_falls_with_noise_and_with_a_shift_of_brightness():
    video = torch.rand(1, 3, 2, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(1))
    assert ssim(video, video).item() == pytest.approx(1)
    assert 0.2 < ssim(video + 0.5 * noise, video).item() < ssim(video + 0.2 * noise, video).item() < 0.99
    assert ssim(video * 0.5, video * 0.5 - 0.4).item() < 0.95


def test_videos_of_different_or_too_small_shapes_are_errors():
    with pytest.raises(InputError, match="two videos"):
        psnr(torch.zeros(1, 3, 2, 16, 16), torch.zeros(1, 3, 3, 16, 16))
    with pytest.raises(InputError, match="11x11"):
        ssim(torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 3, 2, 8, 8))
