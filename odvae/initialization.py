"""From an image VAE's weights to a video VAE's: the paper's tail initialisation, and what it is compared with (3.3).

A 2D kernel fills the last time slice of a 3D one (tail), or is spread evenly over all slices (average). The tensors'
names are the same in both models, so only the kernels' shapes differ.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from odvae.shared.errors import InputError

Init = Literal["tail", "average", "random"]


def inflate(kernel: Tensor, slices: int, init: Init) -> Tensor:
    """A 2D kernel (o, i, h, w) -> a 3D kernel (o, i, slices, h, w) (paper, equation 2)."""
    if init == "average":
        return kernel.unsqueeze(2).repeat(1, 1, slices, 1, 1) / slices
    inflated = kernel.new_zeros(*kernel.shape[:2], slices, *kernel.shape[2:])
    inflated[:, :, -1] = kernel
    return inflated


def inflate_state(image: dict[str, Tensor], video: dict[str, Tensor], init: Init) -> dict[str, Tensor]:
    """The image VAE's tensors in the shapes of the video VAE's.

    Raises InputError with the name of a missing, extra or misshapen tensor.
    """
    if image.keys() != video.keys():
        missing, extra = sorted(video.keys() - image.keys()), sorted(image.keys() - video.keys())
        raise InputError(f"the image VAE's tensors do not match: missing {missing[:5]}, not expected {extra[:5]}")
    state = {}
    for name, like in video.items():
        tensor = inflate(image[name], like.shape[2], init) if like.ndim == 5 else image[name]
        if tensor.shape != like.shape:
            raise InputError(f"{name}: the image VAE has {tuple(tensor.shape)}, OD-VAE {tuple(like.shape)}")
        state[name] = tensor.to(like.dtype)
    return state
