"""The error on moving pixels, on videos whose motion is known."""

import pytest
import torch

from odvae.evaluation.motion_error import motion_error
from odvae.evaluation.reconstruction import motion_summary
from odvae.running.errors import InputError

LEVEL = 1 / 127.5  # in [-1, 1]


@pytest.fixture
def video():
    """A still picture in which one pixel of sixteen brightens by 20 levels in each of two steps, in one color."""
    video = torch.zeros(1, 3, 3, 4, 4)
    video[0, 1, :, 2, 3] = torch.tensor([0.0, 20 * LEVEL, 40 * LEVEL])
    return video


def test_only_errors_on_moving_pixels_count(video):
    reconstruction = video.clone()
    reconstruction[..., 0, 0] += 0.5  # stands still
    reconstruction[:, :, 0] += 0.5  # the first frame has none before it
    found = motion_error(reconstruction, video, threshold=8)
    assert found.psnr == 100
    assert found.mae == 0
    assert found.moving == pytest.approx(1 / 16)


def test_a_held_first_frame_has_the_error_of_the_motion(video):
    """The moving pixel is off by 20 levels in one frame and 40 in the other, in one of three colors."""
    found = motion_error(video[:, :, :1].expand_as(video), video, threshold=8)
    mse = (20**2 + 40**2) * LEVEL**2 / 6
    assert found.psnr == pytest.approx(float(10 * torch.log10(torch.tensor(4 / mse))), abs=1e-4)
    assert found.mae == pytest.approx(60 / 6, abs=1e-4)


def test_what_changes_less_than_the_threshold_stands_still(video):
    found = motion_error(video + 0.1, video, threshold=21)
    assert found.moving == 0
    assert found.psnr.isnan()
    assert motion_error(video + 0.1, video, threshold=19).moving > 0


def test_the_mean_is_over_clips_with_motion():
    rows = [
        {"moving_share": 0.2, "moving_psnr": 20.0, "moving_mae": 4.0},
        {"moving_share": 0.0},
        {"moving_share": 0.4, "moving_psnr": 30.0, "moving_mae": 2.0},
    ]
    found = motion_summary(rows, 8.0)
    assert (found["psnr"], found["mae"], found["n"]) == (25.0, 3.0, 2)
    assert found["moving_share"] == pytest.approx(0.2)
    assert motion_summary([{}], 8.0)["psnr"] is None


def test_other_shapes_are_refused(video):
    with pytest.raises(InputError, match="two videos of one shape"):
        motion_error(video[:, :, :2], video, 8)
