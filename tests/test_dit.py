"""The DiT's promises: identity at start, masked text does not matter, relative positions, sizes, errors."""

import pytest
import torch

from ldm.dit import DiT, rotary_angles, rotate, rotation
from odvae.shared.errors import InputError


def make_dit(**settings) -> DiT:
    torch.manual_seed(0)
    sizes = {"latent_channels": 4, "width": 32, "depth": 2, "heads": 2, "text_width": 8, "text_tokens": 6}
    return DiT(**{**sizes, "sample_size": (3, 4, 4), **settings}).eval()


def awake(model: DiT) -> DiT:
    """With weights where training would have moved them from zero."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def inputs(batch=2, shape=(3, 4, 4)):
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(batch, 4, *shape, generator=generator)
    text = torch.randn(batch, 6, 8, generator=generator)
    mask = torch.tensor([[True] * 4 + [False] * 2] * batch)
    return latents, torch.rand(batch, generator=generator), text, mask


def test_an_untrained_network_predicts_zero_and_every_block_is_the_identity():
    assert make_dit()(*inputs()).abs().max() == 0


def test_every_parameter_learns_once_the_gates_have_moved():
    model = awake(make_dit())
    model(*inputs()).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_padding_tokens_change_nothing_and_real_ones_do():
    model = awake(make_dit())
    latents, sigma, text, mask = inputs()
    out = model(latents, sigma, text, mask)
    padded, real = text.clone(), text.clone()
    padded[:, 5] += 1
    real[:, 1] += 1
    assert torch.equal(model(latents, sigma, padded, mask), out)
    assert not torch.allclose(model(latents, sigma, real, mask), out)


def test_samples_of_a_batch_do_not_see_each_other():
    model = awake(make_dit())
    together = model(*inputs())
    alone = torch.cat([model(*(tensor[i : i + 1] for tensor in inputs())) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 4), (5, 4, 4), (3, 8, 6)])
def test_other_lengths_and_sizes_than_trained_work(shape):
    model = awake(make_dit())
    assert model(*inputs(shape=shape)).shape == (2, 4, *shape)


def test_rotated_products_depend_on_relative_positions_alone():
    angles = rotary_angles((4, 6, 6), 32, 100.0, torch.device("cpu")).double().view(4, 6, 6, -1)
    q, k = (torch.randn(1, 1, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))

    def product(a, b):
        return (rotate(q, rotation(angles[a][None])) * rotate(k, rotation(angles[b][None]))).sum()

    assert torch.allclose(product((0, 1, 2), (1, 3, 3)), product((2, 3, 4), (3, 5, 5)), atol=1e-5)
    assert not torch.allclose(product((0, 1, 2), (1, 3, 3)), product((0, 1, 2), (2, 3, 3)), atol=1e-3)


def test_sizes_that_do_not_fit_are_errors():
    with pytest.raises(InputError, match="patch_size"):
        make_dit()(*inputs(shape=(3, 5, 4)))
    with pytest.raises(InputError, match="at least 16"):
        make_dit(width=32, heads=4)
