"""Feature networks of videos, with the preprocessing that a distance on their features depends on.

Only the Frechet distance on I3D's features is called FVD; that of any other network has the network's name.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VideoMAEForVideoClassification

from ldm.evaluation import c3d, i3d
from ldm.evaluation.settings import EvalLDMSettings, NetworkName
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint
from odvae.video.pixels import to_float
from odvae.weights.pretrained import load_model


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network in eval mode: videos (b, 3, t, r, r) in [-1, 1] -> features (b, dimension)."""

    name: NetworkName
    title: str
    distance: str  # name of the Frechet distance on its features
    module: nn.Module
    sha256: str
    dimension: int
    resolution: int | None  # None: it takes videos of any size, and resizes them itself
    antialias: bool
    frames: tuple[int, int | None]  # fewest and most frames it takes
    are_logits: bool = False  # features are a classifier's logits, from which an inception score follows

    def describe(self) -> dict:
        """The part of a score's protocol that concerns the network."""
        size = f"{self.resolution}x{self.resolution}" if self.resolution else "resized by the network"
        return {
            "network": self.title,
            "sha256": self.sha256,
            "features": self.dimension,
            "input": f"{size} in [-1, 1], bilinear, {'' if self.antialias else 'not '}antialiased",
        }

    def check_frames(self, frames: int) -> None:
        """Raise InputError where clips have too few or too many frames for this network."""
        fewest, most = self.frames
        if frames < fewest or (most is not None and frames > most):
            allowed = str(fewest) if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
            raise InputError(
                f"eval_ldm.networks: {self.title} takes {allowed} frames, the protocol gives {frames}; choose another "
                "eval_ldm.protocol, or longer clips (data.frames)"
            )


def load_network(name: NetworkName, settings: EvalLDMSettings) -> FeatureNetwork:
    """One network by name, with the weights that the settings name."""
    if name == "i3d":
        return _load_i3d(settings)
    if name == "c3d":
        return _load_c3d(settings)
    if name == "videomae":
        return _load_videomae(settings.videomae)
    module = RandomConv3d()
    title, distance = "random conv3d features, 64-d, seed 0", "Frechet distance on random conv3d features (not FVD)"
    sha256 = weights_fingerprint(module)
    return FeatureNetwork(name, title, distance, module, sha256, WIDTHS[-1], 48, True, (1, None))


def _load_i3d(settings: EvalLDMSettings) -> FeatureNetwork:
    module, sha256 = i3d.load_i3d(settings.i3d, settings.i3d_sha256)
    return FeatureNetwork(
        "i3d",
        f"I3D, Kinetics-400 logits ({type(module).__name__})",
        "FVD",
        module,
        sha256,
        i3d.CLASSES,
        i3d.RESOLUTION,
        False,
        (i3d.MIN_FRAMES, None),
        are_logits=True,
    )


def _load_c3d(settings: EvalLDMSettings) -> FeatureNetwork:
    module, sha256 = c3d.load_c3d(settings.c3d, settings.c3d_mean)
    return FeatureNetwork(
        "c3d",
        "C3D fine-tuned on UCF101, logits (TGANv2's files)",
        "Frechet distance on C3D logits (not FVD)",
        module,
        sha256,
        c3d.CLASSES,
        None,
        False,
        (c3d.FRAMES, c3d.FRAMES),
        are_logits=True,
    )


def _load_videomae(folder: str | None) -> FeatureNetwork:
    if folder is None:
        raise InputError("eval_ldm.networks has videomae, so eval_ldm.videomae must be its folder or hub name")
    source = f"eval_ldm.videomae={folder!r}"
    network = load_model(VideoMAEForVideoClassification, folder, source, "a VideoMAE").eval().requires_grad_(False)
    module, config = VideoMAEFeatures(network), network.config
    return FeatureNetwork(
        "videomae",
        f"VideoMAE {folder}, pooled features before the classifier",
        "Frechet distance on VideoMAE features (not FVD)",
        module,
        weights_fingerprint(module),
        config.hidden_size,
        config.image_size,
        False,
        (config.num_frames, config.num_frames),
    )


class VideoMAEFeatures(nn.Module):
    """VideoMAE without its classifier: the mean over tokens, normalized (Ge et al. 2024, arXiv 2404.12391).

    Distances on its features are sensitive to motion; those on I3D's are dominated by single frames.
    """

    def __init__(self, network: VideoMAEForVideoClassification) -> None:
        super().__init__()
        self.encoder, self.norm = network.videomae, network.fc_norm or nn.Identity()
        # ImageNet's mean and standard deviation, for pixels in [0, 1]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1))

    def forward(self, video: Tensor) -> Tensor:
        pixels = (video / 2 + 0.5 - self.mean) / self.std
        tokens = self.encoder(pixels.transpose(1, 2)).last_hidden_state  # (b, n, d)
        return self.norm(tokens.mean(dim=1))


WIDTHS = (3, 16, 32, 64)


class RandomConv3d(nn.Module):
    """Three strided 3D convolutions with fixed random weights; features are 32 means and 32 standard deviations.

    It needs no download. Random features respond to color, texture and motion well enough to distinguish sets of
    videos, and favor no model. Distances are comparable only with this network's at the same size and count.
    """

    def __init__(self) -> None:
        super().__init__()
        # numpy's generator gives the same values on every version and machine; torch's need not
        rng = np.random.default_rng(0)
        self.kernels = nn.ParameterList()
        for c_in, c_out in itertools.pairwise(WIDTHS):
            kernel = rng.standard_normal((c_out, c_in, 3, 3, 3)) * np.sqrt(2 / (27 * c_in))
            self.kernels.append(nn.Parameter(torch.from_numpy(kernel).float(), requires_grad=False))

    def forward(self, video: Tensor) -> Tensor:
        x = video
        for kernel in self.kernels:
            x = F.leaky_relu(F.conv3d(x, kernel, stride=(1, 2, 2), padding=1), 0.2)  # (b, c, t, h / 2, w / 2)
        half = x.shape[1] // 2
        return torch.cat([x[:, :half].mean(dim=(2, 3, 4)), x[:, half:].std(dim=(2, 3, 4))], dim=1)


@torch.no_grad()
def extract_features(
    network: FeatureNetwork, videos: np.ndarray, resize: Literal["squash", "crop"] = "squash", batch_size: int = 16
) -> np.ndarray:
    """uint8 videos (n, t, h, w, 3) -> float32 features (n, d). Raises InputError for other layouts and frame counts."""
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] != 3:
        raise InputError(f"expected uint8 videos (n, t, h, w, 3), found {videos.dtype} {videos.shape}")
    network.check_frames(videos.shape[1])
    device = next(network.module.parameters()).device
    parts = []
    for first in range(0, len(videos), batch_size):
        video = to_float(torch.from_numpy(videos[first : first + batch_size])).to(device)
        if network.resolution is not None:
            video = to_square(video, network.resolution, network.antialias, resize)
        parts.append(network.module(video).float().cpu())
    return torch.cat(parts).numpy() if parts else np.zeros((0, network.dimension), np.float32)


def to_square(video: Tensor, size: int, antialias: bool, resize: Literal["squash", "crop"]) -> Tensor:
    """(b, 3, t, h, w) -> (b, 3, t, size, size), bilinear with align_corners=False, as public FVD code does.

    "squash" ignores the aspect ratio; "crop" resizes the short side and crops the center.
    """
    b, _, t, h, w = video.shape
    shape = [size, size] if resize == "squash" else [-(-size * side // min(h, w)) for side in (h, w)]
    frames = video.transpose(1, 2).flatten(0, 1)
    if (h, w) != tuple(shape):
        frames = F.interpolate(frames, size=shape, mode="bilinear", align_corners=False, antialias=antialias)
    top, left = ((side - size) // 2 for side in shape)
    frames = frames[:, :, top : top + size, left : left + size]
    return frames.unflatten(0, (b, t)).transpose(1, 2)


def load_networks(settings: EvalLDMSettings, device: torch.device) -> list[FeatureNetwork]:
    """The networks that the settings name, each once, on the device."""
    networks = [load_network(name, settings) for name in dict.fromkeys(settings.networks)]
    for network in networks:
        network.module.to(device).requires_grad_(False)
    return networks
