"""Frozen image encoders (DINOv2, CLIP, ViT, ConvNeXt, ...) of timm and transformers: frames -> a grid of features."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from odvae.running.errors import InputError
from odvae.running.files import read_json
from odvae.running.text import shorten
from odvae.weights.pretrained import loading, read_config

_FILES = ("config.json", "preprocessor_config.json", "*.safetensors")
_WHAT = "an image encoder"


class ImageEncoder(nn.Module):
    """A frozen image encoder: frames (n, 3, h, w) in [-1, 1] -> features (n, dimension, rows, columns).

    Frames are resized to squares of `size` pixels (aspect ratios are not kept, so a feature's place in the grid is its
    place in the frame), and normalized with the encoder's own mean and standard deviation of pixels in [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        features: Callable[[Tensor], Tensor],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.model, self.features, self.size = model, features, size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)
        self.dimension = self(torch.zeros(1, 3, size, size)).shape[1]

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        size = (self.size, self.size)
        frames = F.interpolate(frames.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return self.features((frames / 2 + 0.5 - self.mean) / self.std)


def load_image_encoder(name: str, image_size: int | None = None) -> ImageEncoder:
    """An image encoder from a folder or hub name of timm or transformers, with weights as safetensors.

    `image_size` is the side of its input in pixels; None: the one it was trained with. Raises InputError where it
    cannot be loaded.
    """
    source = f"ldm.alignment.encoder={name!r}"
    with loading(source, name, _WHAT):
        folder = Path(name)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(name, allow_patterns=list(_FILES)))
        config = read_config(folder)
        if not list(folder.glob("*.safetensors")):
            raise InputError(f"{source}: {folder} has no *.safetensors (save the model with safe serialization)")
        if "architecture" in config:
            return _load_timm(folder, image_size)
        return _load_transformers(folder, source, image_size)


def _load_timm(folder: Path, image_size: int | None) -> ImageEncoder:
    import timm  # slow: it imports all of its models

    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    data = model.pretrained_cfg
    if image_size is not None and hasattr(model, "set_input_size"):  # others are convolutional and take any size
        model.set_input_size(img_size=image_size)

    def features(frames: Tensor) -> Tensor:
        (grid,) = model.forward_intermediates(frames, indices=1, norm=True, intermediates_only=True)
        return grid  # (n, d, rows, columns)

    return ImageEncoder(model, features, image_size or data["input_size"][-1], data["mean"], data["std"])


def _load_transformers(folder: Path, source: str, image_size: int | None) -> ImageEncoder:
    from transformers import AutoModel

    model, found = AutoModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    if missing := sorted(key for key in found["missing_keys"] if "pooler" not in key):
        raise InputError(f"{source}: {type(model).__name__} needs {shorten(missing)}, which its weights lack")
    model = getattr(model, "vision_model", model)  # of CLIP and its like, the half that sees
    preprocessing = _preprocessing(folder, source)
    size = image_size or _native_size(model.config, source)
    options = {}
    if image_size is not None and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = True

    def features(frames: Tensor) -> Tensor:
        hidden = model(pixel_values=frames, **options).last_hidden_state
        if hidden.ndim == 4:  # convolutional: (n, d, rows, columns)
            return hidden
        side = frames.shape[-1] // model.config.patch_size
        patches = hidden[:, hidden.shape[1] - side * side :]  # without class and register tokens, which are in front
        return rearrange(patches, "n (h w) d -> n d h w", h=side)

    return ImageEncoder(model, features, size, preprocessing["image_mean"], preprocessing["image_std"])


def _preprocessing(folder: Path, source: str) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    found = read_json(path) if path.is_file() else {}
    if not {"image_mean", "image_std"} <= found.keys():
        raise InputError(f"{source}: {path} must have image_mean and image_std, with which the encoder was trained")
    return found


def _native_size(config: Any, source: str) -> int:
    if not isinstance(size := getattr(config, "image_size", None), int):
        raise InputError(f"{source}: its config has no image_size; set ldm.alignment.image_size")
    return size
