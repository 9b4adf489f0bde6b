"""LPIPS perceptual distance of images (Zhang et al. 2018, arXiv 1801.03924, v0.1), as metric and as training loss.

Architecture and calibrated heads come from the `lpips` package. The distance is computed here: no gradient is computed
for the reference, and a position with all-zero features has gradient 0, not NaN.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from itertools import chain
from pathlib import Path

import lpips
import torch
import torchvision
from torch import Tensor, nn

from odvae.running.errors import InputError
from odvae.settings import Backbone
from odvae.weights.pretrained import not_reached
from odvae.weights.weights_files import read_weights, why_incomplete

_HUB_WEIGHTS = {
    "vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}


class LPIPS(nn.Module):
    """LPIPS of frames (n, 3, h, w) in [-1, 1] -> (n,). Frozen; gradients flow only to the first argument."""

    def __init__(self, network: Backbone, weights: str | Path | None = None) -> None:
        super().__init__()
        with warnings.catch_warnings():  # lpips passes a deprecated argument to torchvision
            warnings.simplefilter("ignore", UserWarning)
            self.reference = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        _load_backbone(self.reference.net, network, weights)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in eval mode: the heads' dropout is used only for their calibration."""
        return super().train(False)

    def forward(self, frames: Tensor, reference: Tensor) -> Tensor:
        with torch.no_grad():
            expected = [_normalize(f) for f in self._features(reference)]
        found = [_normalize(f) for f in self._features(frames)]
        layers = zip(self.reference.lins, found, expected, strict=True)
        return sum(head((a - b).square()).mean(dim=(1, 2, 3)) for head, a, b in layers)

    def _features(self, frames: Tensor) -> tuple[Tensor, ...]:
        return self.reference.net(self.reference.scaling_layer(frames))


def _normalize(features: Tensor) -> Tensor:
    """Features (n, c, h, w) normalized to unit length at each position.

    The epsilon is inside the square root, whose gradient at 0 is infinite.
    """
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-10)


@lru_cache(maxsize=2)
def load_lpips(network: Backbone, weights: str | None, device: torch.device) -> LPIPS:
    """An LPIPS network, cached per process. Raises InputError where its weights cannot be loaded."""
    return LPIPS(network, weights).to(device)


def _load_backbone(net: nn.Module, network: Backbone, weights: str | Path | None) -> None:
    """Load torchvision's weights (`features.3.weight`) into the backbone of lpips (`slice2.3.weight`)."""
    state = _hub_state(network) if weights is None else _read_state(Path(weights))
    own = {name: name.partition(".")[2] for name, _ in chain(net.named_parameters(), net.named_buffers())}
    named = {}
    for name, suffix in own.items():
        published = f"features.{suffix}"
        if published not in state:
            raise InputError(f"{weights or 'torchvision'} has no {network} backbone: {published} is missing")
        if state[published].shape != net.get_parameter(name).shape:
            found, needed = tuple(state[published].shape), tuple(net.get_parameter(name).shape)
            raise InputError(f"{weights or 'torchvision'}: {published} has shape {found}, {network} needs {needed}")
        named[name] = state[published]
    net.load_state_dict(named)


def _hub_state(network: Backbone) -> dict[str, Tensor]:
    url = _HUB_WEIGHTS[network].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if file.exists():
        if problem := why_incomplete(file):
            raise InputError(f"LPIPS: {file} {problem}; remove it and run the same command again")
        return read_weights(file, "LPIPS:")
    try:
        return dict(_HUB_WEIGHTS[network].get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: another hash
        remedy = (
            "Download it elsewhere and name the file (vae.loss.lpips.weights, eval_vae.lpips.weights), "
            "or put it there; or switch LPIPS off (vae.loss.lpips=null, eval_vae.lpips=null)"
        )
        here = f"torchvision's {network} weights are not at {file} (TORCH_HOME)"
        raise not_reached("LPIPS", here, url, error, remedy) from None


def _read_state(path: Path) -> dict[str, Tensor]:
    state = read_weights(path, "vae.loss.lpips.weights or eval_vae.lpips.weights:")
    if not isinstance(state, dict):
        raise InputError(f"{path} contains no tensors by name, but a {type(state).__name__}")
    return state
