"""Common helpers of tests: the path of the checkout, sizes of a small VAE, differences of tensors, tars, a video."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def tar_of(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar with these members, (name, content), in this order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def moving_square(frames: int = 9, seed: int = 0) -> np.ndarray:
    """A square that moves to the right, (frames, 32, 32, 3); its green depends on the seed."""
    video = np.full((frames, 32, 32, 3), 40, np.uint8)
    for i in range(frames):
        video[i, 8:20, i : i + 10] = (200, 20 + 10 * seed, 30)
    return video
