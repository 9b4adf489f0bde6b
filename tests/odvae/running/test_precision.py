"""Kernels of a GPU: TF32 and cuDNN's benchmark as set, and versions that are known to be slow."""

import pytest
import torch

from odvae.running.errors import InputError
from odvae.running.precision import choose_kernels, slow_versions


@pytest.fixture
def torch_defaults():
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = False, True, False
    yield
    products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.mark.usefixtures("torch_defaults")
@pytest.mark.parametrize(
    ("tf32", "products", "convolutions"), [(None, False, True), (True, True, True), (False, False, False)]
)
def test_tf32_and_the_benchmark_are_as_set(tf32, products, convolutions):
    choose_kernels(tf32, cudnn_benchmark=True)
    assert torch.backends.cuda.matmul.allow_tf32 == products
    assert torch.backends.cudnn.allow_tf32 == convolutions
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("torch_version", "cudnn", "slow"),
    [("2.9.1+cu128", 91002, True), ("2.9.0", None, True), ("2.9.1", 91500, False), ("2.11.0+cu130", 91002, False)],
)
def test_torch_2_9_without_a_new_cudnn_is_named(torch_version, cudnn, slow):
    warning = slow_versions(torch_version, cudnn)
    assert (warning is not None) == slow
    assert not slow or f"torch {torch_version} with cuDNN {cudnn}" in warning


@pytest.mark.usefixtures("torch_defaults")
def test_cudnns_benchmark_and_deterministic_exclude_each_other(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with pytest.raises(InputError, match="with deterministic=true it must be false"):
        choose_kernels(tf32=None, cudnn_benchmark=True)
    assert not torch.backends.cudnn.benchmark
