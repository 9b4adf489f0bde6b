"""Loading of Open-Sora-Plan's published OD-VAE checkpoints: v1.2.0, and v1.1.0 with its separate temporal layers.

Their tensors have other names, which `published_names` maps to ODVAE's. All sizes are inferred from the tensors, so no
config.json is needed. Pickled objects are never loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from odvae.architecture.layers import CausalConv3d, FrameConv2d
from odvae.architecture.resampling import DoublingConv3d
from odvae.running.errors import InputError
from odvae.running.text import check_is_file, shorten
from odvae.weights.ldm_format import NORM_GROUPS, ldm_name
from odvae.weights.weights_files import WEIGHTS, read_weights

_ENDINGS = f"{', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}"
LEVELS = 4


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The VAE's tensors, by their published names, from a .safetensors, .ckpt, .pt, .pth or .bin file or its folder.

    From a training checkpoint the EMA weights (`ema_state_dict`) are taken if there are any, otherwise the generator's
    (`state_dict.gen_model`). Tensors of the training loss (`loss.*`) are left out. Raises InputError for a file that
    is missing, broken, or contains anything but plain values and tensors (loading Python objects could run code).
    """
    file = _find_file(Path(path))
    state = _weights_of(read_weights(file), file)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}


def infer_settings(state: Mapping[str, Tensor], source: str | Path) -> dict:
    """Arguments of ODVAE for the published model with these tensors, inferred from their shapes.

    Raises InputError if they are not a published model's, with the name of the first missing tensor.
    """
    if any(name.startswith("encoder.down_blocks.") for name in state):
        raise InputError(f"{source} has tensors with diffusers' names; load it with ODVAE.from_pretrained(folder)")
    blocks = [int(found[1]) for name in state if (found := re.match(r"encoder\.down\.\d+\.block\.(\d+)\.", name))]
    widths = [_tensor(state, f"encoder.down.{i}.block.0.norm2.weight", source).shape[0] for i in range(LEVELS)]
    return {
        "block_out_channels": tuple(widths),
        "layers_per_block": max(blocks) + 1,
        "latent_channels": _tensor(state, "post_quant_conv.conv.bias", source).shape[0],
        "norm_num_groups": NORM_GROUPS,
        "variant": 4,
        "norm": "clip",
        "temporal_upsample": "trilinear",
        "temporal_resampling": "separate" if any(".time_" in name for name in state) else "joint",
    }


def published_names(vae: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The name and shape of each of the VAE's tensors in a published checkpoint, by the VAE's tensor name."""
    names = {}
    for module_name, module in vae.named_modules():
        # The published code wraps 3D convolutions in a module with attribute `conv`, also those with a temporal kernel
        # size of 1: in attention, and in the decoder's upsampler without temporal upsampling.
        wrapped = isinstance(module, (CausalConv3d, DoublingConv3d, nn.Linear))
        wrapped |= isinstance(module, FrameConv2d) and module_name.startswith("decoder.")
        for kind, tensor in module.named_parameters(recurse=False):
            shape = tuple(tensor.shape)
            if wrapped and kind == "weight":  # (o, i, [h, w]) -> (o, i, 1.., h, w)
                shape = shape[:2] + (1,) * (5 - len(shape)) + shape[2:]
            published = ldm_name(module_name, LEVELS) + (".conv." if wrapped else ".") + kind
            names[f"{module_name}.{kind}"] = (published, shape)
    return names


def rename_tensors(state: Mapping[str, Tensor], vae: nn.Module, source: str | Path) -> dict[str, Tensor]:
    """Published tensors as float32 copies with ODVAE's names and shapes.

    Raises InputError with the names of missing or unexpected tensors, or of a tensor of another shape.
    """
    names, own_shapes = published_names(vae), {name: tensor.shape for name, tensor in vae.state_dict().items()}
    expected = {published for published, _ in names.values()}
    if expected != state.keys():
        missing, extra = sorted(expected - state.keys()), sorted(state.keys() - expected)
        raise InputError(
            f"{source} is not a published OD-VAE: missing tensors {shorten(missing)}; not expected {shorten(extra)}"
        )
    renamed = {}
    for name, (published, shape) in names.items():
        found = tuple(state[published].shape)
        if found != shape:
            raise InputError(f"{source}: {published} has shape {found}, the model needs {shape}")
        renamed[name] = state[published].reshape(own_shapes[name]).to(torch.float32, copy=True)
    return renamed


def _find_file(path: Path) -> Path:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in WEIGHTS)
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise InputError(f"{path} must contain one {_ENDINGS} file, found {found}")
        return files[0]
    check_is_file(path, "checkpoint")
    if path.suffix not in WEIGHTS:
        raise InputError(f"{path}: a checkpoint file must end in {_ENDINGS}")
    return path


def _weights_of(checkpoint: object, file: Path) -> Mapping[str, Tensor]:
    """The VAE's weights in a checkpoint: the EMA weights, the generator's weights, or the checkpoint itself."""
    weights = checkpoint
    if isinstance(checkpoint, Mapping):
        if checkpoint.get("ema_state_dict"):
            weights = checkpoint["ema_state_dict"]
        elif isinstance(nested := checkpoint.get("state_dict"), Mapping):
            weights = nested.get("gen_model", nested)
    if not isinstance(weights, Mapping):
        raise InputError(f"{file} must contain weights by name, found a {type(weights).__name__}")
    wrong = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if wrong:
        raise InputError(
            f"{file} contains no weights: expected ema_state_dict, state_dict.gen_model or tensors by name, found "
            f"{shorten(wrong)}"
        )
    return weights


def _tensor(state: Mapping[str, Tensor], name: str, source: str | Path) -> Tensor:
    if name not in state:
        raise InputError(f"{source} is not a published OD-VAE: {name} is missing")
    return state[name]
