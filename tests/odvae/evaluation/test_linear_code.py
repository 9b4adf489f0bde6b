"""A linear code of blocks is exact where it can be, and as good as principal components are elsewhere."""

from __future__ import annotations

import pytest
import torch

from odvae.evaluation.linear_code import fit_linear_code, hold_first_frame
from odvae.running.errors import InputError


def draw_videos(count: int = 2, frames: int = 9, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, frames, 16, 16, generator=generator) * 1.8 - 0.9 for _ in range(count)]


def test_with_as_many_values_as_the_blocks_have_the_code_is_exact():
    videos = draw_videos(frames=5)
    code = fit_linear_code(videos, (2, 4, 4), channels=96)
    for video in videos:
        torch.testing.assert_close(code.reconstruct(video), video, atol=1e-4, rtol=0)


def test_blocks_on_a_line_need_one_value():
    pattern = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5
    still = torch.full((1, 3, 1, 16, 16), 0.25)
    strength = torch.tensor([[0.1, 0.9], [-0.7, 0.4]])
    groups = torch.cat([torch.cat([s * pattern for s in row], dim=3) for row in strength], dim=2)[None]
    video = torch.cat([still, groups], dim=2)
    code = fit_linear_code([video], (4, 8, 8), channels=1)
    torch.testing.assert_close(code.reconstruct(video), video, atol=1e-5, rtol=0)


def test_the_error_is_the_variance_of_the_components_left_out():
    videos = draw_videos(3)
    blocks = torch.cat([v[:, :, 1:].reshape(1, 3, 4, 2, 2, 8, 2, 8).permute(0, 2, 4, 6, 1, 3, 5, 7) for v in videos])
    variances = torch.linalg.eigvalsh(torch.cov(blocks.reshape(-1, 384).T.double(), correction=0))  # ascending
    code = fit_linear_code(videos, (2, 8, 8), channels=40)
    assert code.rest is not None
    error = sum((code.rest.project(flat) - flat).square().sum().item() for flat in blocks.reshape(3, -1, 384))
    assert error == pytest.approx(float(variances[:-40].sum()) * blocks.shape[:4].numel(), rel=1e-4)


def test_images_and_the_first_frame_held():
    image = draw_videos(1, frames=1)[0]
    code = fit_linear_code([image], (4, 8, 8), channels=4)
    assert code.rest is None
    torch.testing.assert_close(code.reconstruct(image), image, atol=1e-4, rtol=0)  # four blocks: a mean and three lines
    video = draw_videos(1)[0]
    assert (hold_first_frame(video) == video[:, :, :1]).all()
    assert hold_first_frame(video).shape == video.shape


def test_frames_that_do_not_fit_the_rate_are_refused():
    with pytest.raises(InputError, match=r"data\.frames.*8"):
        fit_linear_code(draw_videos(frames=8), (4, 8, 8), channels=2)
