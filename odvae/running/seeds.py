"""Random numbers as a function of position: a (seed, name, sample number) always gives the same random numbers.

No stage keeps a random state. So sample number n has the same crop, noise and timestep in a resumed run, with another
number of ranks, and with another batch size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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
