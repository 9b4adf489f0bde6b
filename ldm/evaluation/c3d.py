"""C3D (Tran et al. 2015, arXiv 1412.0767) fine-tuned on UCF101: the network behind inception scores of videos.

The weights are those of TGANv2's evaluation (Saito et al. 2020, arXiv 1811.09245), which others have taken over:
`conv3d_deepnetA_ucf.npz`, and `mean2.npz` with the mean video of the training set. Both are NumPy archives.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odvae.running.errors import InputError
from odvae.running.hashing import file_fingerprint
from odvae.running.text import check_is_file, shorten

CLASSES = 101
FRAMES = 16
RESOLUTION = 112

_MARGIN = 8  # of the mean video, 128 pixels high and at least as wide, on each side of what the network sees
_CONVOLUTIONS = {
    "conv1a": (3, 64), "conv2a": (64, 128), "conv3a": (128, 256), "conv3b": (256, 256),
    "conv4a": (256, 512), "conv4b": (512, 512), "conv5a": (512, 512), "conv5b": (512, 512),
}  # fmt: skip
_POOLED_AFTER = ("conv1a", "conv2a", "conv3b", "conv4b", "conv5b")
_LINEAR = {"fc6": (512 * 4 * 4, 4096), "fc7": (4096, 4096), "fc8": (4096, CLASSES)}


class C3D(nn.Module):
    """Video (b, 3, 16, h, w) in [-1, 1] -> logits (b, 101).

    As TGANv2's code, it scales pixels to [0, 256), takes the color channels in the order blue, green, red, resizes
    frames to 112x112 whatever their aspect (bilinear, corners aligned), and subtracts the mean video.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, (c_in, c_out) in _CONVOLUTIONS.items():
            self.add_module(name, nn.Conv3d(c_in, c_out, 3, padding=1))
        for name, (c_in, c_out) in _LINEAR.items():
            self.add_module(name, nn.Linear(c_in, c_out))
        self.register_buffer("mean", torch.zeros(3, FRAMES, RESOLUTION, RESOLUTION))

    def forward(self, video: Tensor) -> Tensor:
        b, _, t, _, _ = video.shape
        frames = video.flip(1).transpose(1, 2).flatten(0, 1) * 128
        frames = F.interpolate(frames, size=(RESOLUTION, RESOLUTION), mode="bilinear", align_corners=True)
        x = frames.unflatten(0, (b, t)).transpose(1, 2) + 128 - self.mean
        for name in _CONVOLUTIONS:
            x = F.relu(self.get_submodule(name)(x))
            if name in _POOLED_AFTER:
                # The first pooling leaves time as it is; the last one, of 7 positions, makes 4.
                x = F.max_pool3d(x, (1, 2, 2) if name == "conv1a" else 2, ceil_mode=True)
        x = x.flatten(1)
        for name in ("fc6", "fc7"):
            x = F.relu(self.get_submodule(name)(x))
        return self.get_submodule("fc8")(x)


def load_c3d(weights: str | None, mean: str | None) -> tuple[C3D, str]:
    """C3D with the weights in `conv3d_deepnetA_ucf.npz` and the mean video in `mean2.npz`, in eval mode, and the
    sha256 of the weights' file. Raises InputError for missing files and for other arrays."""
    if weights is None or mean is None:
        raise InputError(
            "eval_ldm.networks has c3d, so eval_ldm.c3d and eval_ldm.c3d_mean must be TGANv2's files "
            "conv3d_deepnetA_ucf.npz and mean2.npz (its README says where they are)"
        )
    network = C3D()
    state = {
        f"{layer}.{ours}": (f"{layer}/{theirs}", network.get_submodule(layer).get_parameter(ours).shape)
        for layer in (*_CONVOLUTIONS, *_LINEAR)
        for ours, theirs in (("weight", "W"), ("bias", "b"))
    }
    arrays = _read_arrays(Path(weights), "eval_ldm.c3d", {theirs: tuple(shape) for theirs, shape in state.values()})
    network.load_state_dict({ours: arrays[theirs] for ours, (theirs, _) in state.items()}, strict=False)
    network.mean.copy_(_read_mean(Path(mean)))
    return network.eval(), file_fingerprint(Path(weights))


def _read_mean(path: Path) -> Tensor:
    """The mean video (3, 16, 112, 112), cut from that of the file where TGANv2's code cuts it."""
    found = _read_arrays(path, "eval_ldm.c3d_mean", {"mean": None})["mean"]
    ends = _MARGIN + RESOLUTION
    if found.shape[:2] != (3, FRAMES) or found.ndim != 4 or min(found.shape[2:]) < ends:
        raise InputError(
            f"eval_ldm.c3d_mean: mean in {path} is {tuple(found.shape)}, expected (3, {FRAMES}, h, w) with h and w of "
            f"at least {ends}"
        )
    return found[:, :, _MARGIN:ends, _MARGIN:ends]


def _read_arrays(path: Path, setting: str, shapes: Mapping[str, tuple[int, ...] | None]) -> dict[str, Tensor]:
    """Arrays of an .npz file by name; shape None: any. Pickled objects in it are never loaded."""
    check_is_file(path, f"{setting}:")
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := sorted(shapes.keys() - set(archive.files)):
                raise InputError(f"{setting}: {path} has no array {missing[0]}; it has {shorten(archive.files)}")
            for name, shape in shapes.items():
                array = archive[name]
                if shape is not None and array.shape != shape:
                    raise InputError(f"{setting}: {name} in {path} is {array.shape}, C3D's is {shape}")
                arrays[name] = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    except InputError:
        raise
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{setting}: {path} cannot be read as NumPy's .npz: {error}") from None
    return arrays
