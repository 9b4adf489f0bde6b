"""Muon and AdaMuon: the updates of timm's optimizers, in a native precision, for all matrices of a shape at once."""

import functools

import pytest
import scripts  # noqa: F401  the server that forks the two ranks imports what they need
import timm.optim.muon
import torch
from small_optimization import Network, step_on_shards, train
from timm.optim import create_optimizer_v2

from odvae.training import muon
from odvae.training.muon import Muon, is_matrix, orthogonalize
from odvae.training.optimization import MUON_OPTIMIZERS, make_optimizer
from odvae.training.settings import OptimizationSettings


def same_weights(one, other, **tolerance):
    return all(torch.allclose(a, b, **tolerance) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", MUON_OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_timm_in_fp32(monkeypatch, name, weight_decay):
    in_fp32 = functools.partial(timm.optim.muon.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", in_fp32)
    monkeypatch.setattr(muon, "inner_dtype", lambda device: torch.float32)
    ours, theirs, start = Network(), Network(), Network()
    settings = OptimizationSettings(
        optimizer=name, learning_rate=1e-2, betas=(0.8, 0.9), weight_decay=weight_decay, precision="fp32"
    )
    optimizer = make_optimizer(ours, settings)
    assert type(optimizer) is Muon
    train(ours, optimizer, steps=5)
    train(theirs, create_optimizer_v2(theirs, name, 1e-2, weight_decay, betas=(0.8, 0.9)), steps=5)
    assert same_weights(ours, theirs, atol=2e-5, rtol=0)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(ours.parameters(), start.parameters(), strict=True))


def test_matrices_are_told_apart_as_timm_does():
    shapes = [
        (8, 3, 3, 3, 3),
        (8, 1, 3, 3),
        (1, 5, 8),
        (24,),
        (2, 24),
        (4, 512),
        (4, 513),
        (513, 4),
        (8, 8),
        (1, 9),
        (),
    ]
    for shape in shapes:
        parameter = torch.empty(shape)
        assert is_matrix(parameter) == timm.optim.muon._is_suitable_for_muon(parameter), shape


@pytest.mark.parametrize("shape", [(6, 32), (32, 6), (16, 16)])
def test_orthogonalizing_keeps_singular_vectors_and_brings_values_near_one(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    values = torch.logspace(0, -2, u.shape[2])
    result = u.mT @ orthogonalize(10 * u @ values.diag() @ v) @ v.mT  # (3, k, k)
    kept = result.diagonal(dim1=1, dim2=2)
    assert (kept - 1).abs().max() < 0.2
    assert (result - torch.diag_embed(kept)).abs().max() < 1e-3


def test_the_gram_matrix_s_way_gives_what_steps_on_the_whole_matrix_give():
    """Also where small singular values drown in rounding, as in gradients of few samples."""
    torch.manual_seed(0)
    few = torch.randn(2, 64, 5) @ torch.randn(2, 5, 256) + 1e-4 * torch.randn(2, 64, 256)
    for matrices in (torch.randn(2, 64, 256), few):
        exact = orthogonalize(matrices.double())
        error = (orthogonalize(matrices) - exact).norm() / exact.norm()
        assert error < 1e-3, error


def test_zero_gradients_give_no_step_and_no_nan():
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 9)), torch.zeros(2, 4, 9))


def test_a_matrix_takes_the_same_step_alone_and_among_others_of_its_shape():
    torch.manual_seed(0)
    matrices = torch.randn(3, 16, 40)
    assert torch.allclose(orthogonalize(matrices)[1:2], orthogonalize(matrices[1:2]), atol=1e-5)


def test_the_inner_work_is_in_bf16_where_the_device_computes_in_it(monkeypatch):
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert muon.inner_dtype(torch.device("cuda")) == muon.inner_dtype(torch.device("cpu")) == dtype


@pytest.mark.parametrize("shape", [(48, 200), (200, 48), (64, 64)])
def test_in_bf16_the_step_has_nearly_the_direction_of_fp32(shape):
    torch.manual_seed(0)
    gradients = torch.randn(3, *shape)
    exact, rounded = orthogonalize(gradients), orthogonalize(gradients.bfloat16()).float()
    assert torch.nn.functional.cosine_similarity(exact.flatten(1), rounded.flatten(1)).min() > 0.99


def test_a_resumed_optimizer_takes_the_very_same_steps(tmp_path):
    whole, parts = Network(), Network()
    settings = OptimizationSettings(optimizer="nadamuon", learning_rate=1e-2, weight_decay=0.1)
    train(whole, make_optimizer(whole, settings), steps=5)
    optimizer = make_optimizer(parts, settings)
    train(parts, optimizer, steps=2)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    again = make_optimizer(parts, settings)
    again.load_state_dict(torch.load(tmp_path / "optimizer.bin", weights_only=True))
    train(parts, again, steps=3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_parameters_without_a_gradient_stay_as_they_are():
    network, start = Network(), Network()
    optimizer = Muon(network.parameters())
    network.layers[0].weight.grad = torch.randn(24, 8)
    optimizer.step()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, start.get_parameter(name))}
    assert moved == {"layers.0.weight"}


def test_timm_s_wrapper_by_name_wraps_ours():
    optimizer = make_optimizer(Network(), OptimizationSettings(optimizer="lookahead_nadamuon"))
    assert type(optimizer._base_optimizer) is Muon


@pytest.mark.slow
def test_shards_take_the_steps_of_whole_matrices(tmp_path):
    torch.multiprocessing.start_processes(step_on_shards, (tmp_path,), nprocs=2, start_method="forkserver")
    whole = Network()
    train(whole, Muon(whole.parameters(), 1e-2, 0.1, adaptive=True, nesterov=True), steps=3)
    sharded = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, parameter in whole.named_parameters():
        assert torch.allclose(parameter, sharded[name], atol=1e-6), name
