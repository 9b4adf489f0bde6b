"""Random numbers as a function of position: a (seed, name, sample number) always gives the same random numbers.

No stage keeps a random state. So sample number n has the same crop, noise and timestep in a resumed run, with another
number of ranks, and with another batch size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from odvae.running.errors import InputError

# Sizes of cuBLAS's workspace with which its results do not depend on what else the GPU does (NVIDIA's cuBLAS library
# documentation, "Results Reproducibility").
_WORKSPACE, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


def use_deterministic_algorithms() -> None:
    """Let torch, cuBLAS and cuDNN choose deterministic algorithms only; call it before anything uses a GPU.

    An operation that has none raises an error. Raises InputError where the environment sets another workspace.
    """
    chosen = os.environ.setdefault(_WORKSPACE, _WORKSPACES[0])
    if chosen not in _WORKSPACES:
        raise InputError(
            f"deterministic=true needs {_WORKSPACE}={' or '.join(_WORKSPACES)}, the environment has {chosen!r}"
        )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # that would only find bugs
    torch.backends.cudnn.benchmark = False


def derive_seed(*position: int | str) -> int:
    """A 63-bit seed that is a function of all elements of `position`."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(*position: int | str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(*position))


def torch_generator(device: torch.device | str, *position: int | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(derive_seed(*position))


def normal_per_sample(
    shape: Sequence[int], seed: int, name: str, numbers: Sequence[int], device: torch.device | str
) -> Tensor:
    """Standard normal noise (len(numbers), *shape); row i is a function of (seed, name, numbers[i])."""
    rows = [
        torch.randn(tuple(shape), generator=torch_generator(device, seed, name, number), device=device)
        for number in numbers
    ]
    return torch.stack(rows)
