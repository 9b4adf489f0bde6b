"""Randomness as a function of position: the same (seed, name, sample number) gives the same numbers anywhere.

No stage keeps a random state. So a resumed run, another number of ranks and another batch size all see the
same crops, noise and times for sample number n.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def derive_seed(*position: int | str) -> int:
    """A 63-bit seed that depends on every element of `position`, and on nothing else."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(*position: int | str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(*position))


def torch_generator(device: torch.device | str, *position: int | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(derive_seed(*position))


def normal_per_sample(
    shape: Sequence[int], seed: int, name: str, numbers: Sequence[int], device: torch.device | str
) -> Tensor:
    """Standard normal noise (len(numbers), *shape); row i depends on (seed, name, numbers[i]) alone."""
    rows = [
        torch.randn(tuple(shape), generator=torch_generator(device, seed, name, number), device=device)
        for number in numbers
    ]
    return torch.stack(rows)


def shuffled_index(number: int, count: int, seed: int) -> int:
    """Which of `count` items sample `number` is: every `count` samples visit each once, in an order of their own."""
    epoch, position = divmod(number, count)
    return int(_epoch_order(seed, epoch, count)[position])


@functools.lru_cache(maxsize=64)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return numpy_generator(seed, "order", epoch).permutation(count)
