"""Weights that are functions of the tensors' names, so that a network can be stored as a list of names and shapes."""

import ast
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def known_tensor(name: str, shape: Sequence[int]) -> Tensor:
    """A feature network's tensor: N(0, 2/fan_in) for convolutions; no gain is 1, no variance 1, no bias 0."""
    generator = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith(("running_var", "bn.weight")):
        values = generator.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", ".bias")):
        values = generator.normal(0, 0.1, shape)
    else:
        values = generator.normal(0, 1, shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def known_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {name: known_tensor(name, shape) for name, shape in shapes.items()}


def read_keys(path: Path) -> dict[str, list[int]]:
    """Name -> shape of a published checkpoint's tensors; a line is name, shape and dtype, separated by tabs."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return {name: ast.literal_eval(shape) for name, shape, _ in rows}


def known_vae_tensor(name: str, shape: Sequence[int]) -> Tensor:
    """An OD-VAE's tensor: N(0, 1/fan_in) for convolutions, gains 1 + 0.1 N, biases 0.1 N."""
    seed = [0, zlib.crc32(name.encode())]
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return torch.from_numpy(noise / math.sqrt(math.prod(shape[1:])))
    gain = "norm" in name and name.endswith("weight")
    return torch.from_numpy(0.1 * noise + (1.0 if gain else 0.0))
