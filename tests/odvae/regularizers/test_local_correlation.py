"""Local correlation of latents and its loss: values known by hand, the same gradient however a batch is divided."""

import pytest
import torch
from accelerate import Accelerator
from ranks import on_ranks

from odvae.regularizers.local_correlation import LocalCorrelationLoss, RunningStatistics, local_correlation
from odvae.regularizers.settings import LocalCorrelationSettings
from odvae.running.errors import InputError


def checkerboard(*sizes):
    """1 and -1 in turn along each axis, (1, 1, t, h, w)."""
    return (1 - 2 * (sum(torch.meshgrid(*map(torch.arange, sizes), indexing="ij")) % 2)).float()[None, None]


VECTOR = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1, 1)  # minus its mean: (-2, -1, 3)


def test_equal_neighbors_correlate_fully_whatever_their_scale_and_offset():
    scale = torch.rand(1, 1, 3, 4, 6) + 0.5
    assert local_correlation(VECTOR * scale + 7) == pytest.approx(1)


def test_opposite_neighbors_have_the_mean_of_their_pairs():
    """In 1x2x2 two of six pairs are alike: (2 - 4) / 6; in 2x2x2 twelve of 28 are: (12 - 16) / 28."""
    assert local_correlation(VECTOR * checkerboard(1, 2, 2)) == pytest.approx(-1 / 3)
    assert local_correlation(VECTOR * checkerboard(2, 2, 2)) == pytest.approx(-1 / 3)  # one later frame: 1x2x2
    later = local_correlation(VECTOR * checkerboard(3, 2, 2))
    assert later == pytest.approx((-1 / 3 - 1 / 7) / 2)


def test_vectors_at_a_known_angle_have_its_cosine():
    """(-1, 1, 0) and (0, 1, -1) have cosine 1/2. Columns a and b: 2 of 6 pairs are equal, 4 are a with b."""
    a, b = torch.tensor([-1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, -1.0])
    frame = torch.stack([torch.stack([a, b]), torch.stack([a, b])]).permute(2, 0, 1)[None, :, None]  # (1, 3, 1, 2, 2)
    assert local_correlation(frame) == pytest.approx((2 + 4 * 0.5) / 6)
    assert local_correlation(torch.cat([frame, frame.flip(0)])).shape == (2,)


def test_the_first_frame_counts_as_much_as_all_later_ones_and_incomplete_windows_do_not():
    alike = VECTOR.expand(1, 3, 1, 4, 4)
    opposite = VECTOR * checkerboard(4, 4, 4)
    assert local_correlation(torch.cat([alike, opposite], dim=2)) == pytest.approx((1 - 1 / 7) / 2)
    noise = torch.randn(1, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    odd = torch.cat([alike, opposite, noise], dim=2)  # five later frames: the fifth fills no window
    assert local_correlation(odd) == pytest.approx((1 - 1 / 7) / 2)


def test_vectors_without_contrast_correlate_with_none_and_have_finite_gradients():
    flat = torch.ones(1, 3, 3, 2, 2, requires_grad=True)
    correlation = local_correlation(flat)
    assert correlation == 0
    correlation.sum().backward()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("sizes", [(1, 1, 3, 4, 4), (1, 4, 3, 1, 1)])
def test_latents_without_channels_or_neighbors_to_correlate_are_refused(sizes):
    with pytest.raises(InputError, match="needs two channels and two neighbors"):
        local_correlation(torch.zeros(sizes))


def make_loss(**settings):
    return LocalCorrelationLoss(LocalCorrelationSettings(**settings), 3, Accelerator(cpu=True))


def standardized(loss):
    """As after a step on latents of mean 0 and deviation 1."""
    loss.state.add(torch.zeros(3), torch.ones(3))
    return loss


def test_the_loss_is_the_weighted_distance_to_the_target_of_each_clip_and_zero_above_it():
    loss = standardized(make_loss(weight=0.5, target=0.75))
    opposite, alike = VECTOR * checkerboard(1, 2, 2), VECTOR.expand(1, 3, 1, 2, 2)
    value, correlation = loss(torch.cat([opposite, alike]))
    assert value == pytest.approx(0.5 * (0.75 + 1 / 3) / 2)
    assert correlation == pytest.approx((1 - 1 / 3) / 2)
    above = alike.clone().requires_grad_()
    value, _ = loss(above)
    assert value == 0
    value.backward()
    assert above.grad.abs().max() == 0


def test_channels_are_normalized_by_the_statistics_of_past_steps_without_gradient():
    """A channel of another scale and offset counts as much as the others."""
    mean = torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain, scaled = standardized(make_loss()), make_loss()
    scale, offset = torch.tensor([1.0, 100.0, 0.01]), torch.tensor([5.0, 0.0, -3.0])
    scaled.state.add(offset, scale.square() + offset.square())
    moved = mean * scale.view(3, 1, 1, 1) + offset.view(3, 1, 1, 1)
    assert scaled(moved)[1] == pytest.approx(float(plain(mean)[1]), abs=1e-4)


def test_running_statistics_begin_with_the_first_step_and_skip_what_is_not_finite():
    statistics = RunningStatistics(1)
    assert statistics.std == 1
    statistics.add(torch.tensor([3.0]), torch.tensor([13.0]))
    assert (float(statistics.mean), float(statistics.std)) == (3, 2)
    statistics.add(torch.tensor([float("nan")]), torch.tensor([1.0]))
    assert (float(statistics.mean), int(statistics.steps)) == (3, 1)
    statistics.add(torch.tensor([13.0]), torch.tensor([13.0]))
    assert statistics.mean == pytest.approx(0.9 * 3 + 0.1 * 13)


def test_descent_on_the_loss_raises_the_correlation_to_the_target():
    latents = torch.randn(1, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = standardized(make_loss(weight=1.0, target=0.6))
    optimizer = torch.optim.SGD([latents], lr=2.0)
    assert loss(latents)[1] < 0.2
    for _ in range(300):
        optimizer.zero_grad()
        loss(latents)[0].backward()
        optimizer.step()
    assert 0.58 < loss(latents)[1] < 0.7


def step(loss, parts):
    """The gradient at the parts' latents of one optimizer step, and the state after it."""
    gradients = []
    for part in parts:
        part = part.clone().requires_grad_()
        (loss(part)[0] / len(parts)).backward()
        gradients.append(part.grad)
    loss.end_step()
    return torch.cat(gradients), loss.state


def test_the_first_step_only_measures():
    loss = make_loss()
    gradient, state = step(loss, [torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))])
    assert gradient.abs().max() == 0
    assert state.steps == 1


def test_micro_steps_have_the_gradient_and_the_statistics_of_the_whole_batch():
    latents = torch.randn(4, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    whole, parts = standardized(make_loss()), standardized(make_loss())
    (gradient, state), (divided, other) = step(whole, [latents]), step(parts, latents.split(2))
    assert gradient.abs().max() > 0
    assert torch.allclose(gradient, divided, atol=1e-9)
    assert torch.allclose(state.square, other.square)


def test_ranks_have_the_statistics_of_the_global_batch(tmp_path):
    def work(rank):
        loss = standardized(make_loss())
        loss(torch.full((1, 3, 1, 2, 2), float(rank)))
        loss.end_step()
        print(loss.state.mean.tolist(), loss.state.square.tolist())

    for status, printed in on_ranks(2, tmp_path, work):
        assert status == 0, printed
        means, squares = (part.strip(" [") for part in printed.strip().removesuffix("]").split("] ["))
        assert float(means.split(",")[0]) == pytest.approx(0.1 * 0.5)  # of 0 and 1
        assert float(squares.split(",")[0]) == pytest.approx(0.9 + 0.1 * 0.5)
