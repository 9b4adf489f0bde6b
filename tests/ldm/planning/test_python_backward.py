"""Backward passes in Python: the same gradients as torch's engine, to the last bit, and tensors freed as early."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm.planning.python_backward import PythonBackward


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv3d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv3d(8, 3, 3, padding=1)]
    return nn.Sequential(*layers)


def gradients(network: nn.Sequential, recomputed: bool) -> list[torch.Tensor]:
    """As the VAE's loss with a GAN asks for them: of pixels, of the last weight alone, and of all weights, twice."""
    torch.manual_seed(1)
    found = []
    for _ in range(2):
        video = torch.randn(1, 3, 5, 8, 8)
        hidden = checkpoint(network[:3], video, use_reentrant=False) if recomputed else network[:3](video)
        output = network[3](hidden)
        pixels = output.detach().requires_grad_()
        found += torch.autograd.grad(pixels.square().mean(), pixels)
        found += torch.autograd.grad(output, network[3].weight, found[-1], retain_graph=True)
        ((output * found[0]).sum() + output.abs().mean()).backward()
    return found + [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_are_those_of_the_engine(recomputed):
    network = make_network()
    expected = gradients(copy.deepcopy(network), recomputed)
    with PythonBackward().installed():
        found = gradients(copy.deepcopy(network), recomputed)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_each_parameter_is_reported_when_it_gets_a_gradient():
    network, seen = make_network(), []
    with PythonBackward(seen.append).installed():
        network(torch.zeros(1, 3, 5, 8, 8)).sum().backward()
    assert {id(parameter) for parameter in seen} == {id(parameter) for parameter in network.parameters()}


def test_a_saved_tensor_is_freed_once_its_node_has_run_and_kept_where_the_graph_is():
    saved = []

    def run(retain: bool) -> torch.Tensor:
        x = torch.ones(4, requires_grad=True)
        hidden = x.exp()  # saves its result
        saved.append(weakref.ref(hidden.untyped_storage()))
        loss = hidden.exp().sum()
        del hidden
        loss.backward(retain_graph=retain)
        return loss

    with PythonBackward().installed():
        loss = run(retain=False)
        assert saved[0]() is None
        with pytest.raises(AssertionError, match="retain_graph"):
            loss.backward()
        again = run(retain=True)
        assert saved[1]() is not None
        again.backward()
