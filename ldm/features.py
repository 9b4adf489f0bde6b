"""A feature network that needs no download: a 3D convolution network with fixed random weights.

Distances on it are named for it ("Frechet distance on random conv3d features"). They are NOT FVD: the features are
not I3D's, and the values compare only with values of this network at the same size, length and count.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odvae.shared.pixels import to_float

NAME = "random conv3d features, 64-d, seed 0 (not FVD)"
WIDTHS = (3, 16, 32, 64)
RESOLUTION = 48


class RandomConv3d(nn.Module):
    """Three strided 3D convolutions with orthogonal-ish Gaussian weights from a seed; 32 means and 32 deviations.

    Random features see colour, texture and motion well enough to tell sets of videos apart, and they favour no model:
    nothing was trained on anything.
    """

    def __init__(self) -> None:
        super().__init__()
        # numpy's generator is the same on every version and machine, torch's is not promised to be
        rng = np.random.default_rng(0)
        self.kernels = nn.ParameterList()
        for c_in, c_out in itertools.pairwise(WIDTHS):
            kernel = rng.standard_normal((c_out, c_in, 3, 3, 3)) * np.sqrt(2 / (27 * c_in))
            self.kernels.append(nn.Parameter(torch.from_numpy(kernel).float(), requires_grad=False))

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """Video (b, 3, t, h, w) in [-1, 1], t >= 1 -> (b, 64)."""
        b, _, t, _, _ = video.shape
        frames = video.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, size=(RESOLUTION, RESOLUTION), mode="bilinear", antialias=True)
        x = frames.unflatten(0, (b, t)).transpose(1, 2)
        for kernel in self.kernels:
            x = F.leaky_relu(F.conv3d(x, kernel, stride=(1, 2, 2), padding=1), 0.2)  # (b, c, t, h / 2, w / 2)
        half = x.shape[1] // 2
        return torch.cat([x[:, :half].mean(dim=(2, 3, 4)), x[:, half:].std(dim=(2, 3, 4))], dim=1)


def extract_features(videos: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """uint8 videos (n, t, h, w, 3) -> float64 features (n, 64)."""
    network = RandomConv3d()
    batches = [
        network(to_float(torch.from_numpy(videos[first : first + batch_size])))
        for first in range(0, len(videos), batch_size)
    ]
    return torch.cat(batches).double().numpy()
