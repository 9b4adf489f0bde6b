"""The golden values in tests/golden, and the inputs they were computed from."""

import json

from safetensors.torch import load_file
from small import REPOSITORY
from torch import Tensor

from ldm.evaluation.features import to_square

GOLDEN = REPOSITORY / "tests/golden"


def golden_values() -> dict:
    return json.loads((GOLDEN / "values.json").read_text())


def published_vae_values() -> dict[str, Tensor]:
    """`input_9` (1, 3, 9, 64, 64) and the like, and `v120_1x9x64x64.mean`, `.logvar`, `.every_third_pixel`."""
    return load_file(GOLDEN / "published_vae.safetensors")


def degraded(video: Tensor) -> Tensor:
    """A video in [-1, 1] in 13 shades a color."""
    return (video * 6).round() / 6


def i3d_input(video: Tensor) -> Tensor:
    """Videos (b, 3, t, h, w) as I3D takes them, 224 px."""
    return to_square(video, 224, antialias=False, resize="crop")
