"""Temporal flicker metrics in cases with known values."""

import pytest
import torch

from odvae.flicker import added_flicker, seam_ratio, steadiness
from odvae.running.errors import InputError


def test_added_flicker_measures_added_changes_and_not_motion():
    video = torch.rand(2, 3, 9, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert added_flicker(video, video).abs().max() == 0
    assert added_flicker(video + 0.3, video).abs().max() < 1e-4  # a constant error does not flicker
    blinking = video.clone()
    blinking[:, :, 1::2] += 2 / 255
    assert added_flicker(blinking, video).mean().item() == pytest.approx(1, rel=1e-4)  # one 8-bit level
    assert steadiness(torch.zeros(1, 3, 4, 8, 8)).item() == 1
    with pytest.raises(InputError, match="one shape"):
        added_flicker(video, video[:, :, :5])


def test_seams_between_latent_frames_are_found():
    video = torch.zeros(1, 3, 9, 8, 8)
    stepping = video.clone()
    stepping[:, :, 1:5] += 0.1
    stepping[:, :, 5:] += 0.2  # holds within each group of four
    assert seam_ratio(added_flicker(stepping, video), temporal_compression_ratio=4) > 100
    noise = torch.rand(4, 3, 17, 8, 8, generator=torch.Generator().manual_seed(0))
    assert seam_ratio(added_flicker(noise, torch.zeros_like(noise)), temporal_compression_ratio=4) == pytest.approx(
        1, abs=0.1
    )
    assert seam_ratio(added_flicker(noise, noise), temporal_compression_ratio=1) is None
