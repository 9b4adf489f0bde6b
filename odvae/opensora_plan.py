"""The checkpoints that Open-Sora-Plan published for OD-VAE: v1.2.0, and v1.1.0, which resamples time in its own layers.

They hold another implementation's tensor names. `published_names` says which of ODVAE's tensors is which of theirs; all
sizes are read off the tensors, so a config.json beside them is not needed. Pickled objects are never loaded.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from odvae.layers import CausalConv3d, FrameConv2d
from odvae.running.errors import InputError

PICKLED = (".ckpt", ".pt", ".pth")
NORM_GROUPS = 32  # fixed in the published code; no tensor's shape tells it
LEVELS = 4


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The VAE's tensors, by their published names, from a .ckpt, .pt, .pth or .safetensors file or a folder with one.

    Of a training checkpoint it takes the averaged weights (`ema_state_dict`) where there are some, else the generator's
    (`state_dict.gen_model`). Tensors of the training loss (`loss.*`) are left out. Raises InputError for a file that
    is missing, broken, or holds anything but plain values and tensors (loading that could run code).
    """
    file = _find_file(Path(path))
    if file.suffix == ".safetensors":
        try:
            state: Mapping[str, Any] = load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file} is not a whole safetensors file: {error}") from None
    else:
        state = _weights_of(_load_without_code(file), file)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}


def infer_settings(state: Mapping[str, Tensor], source: str | Path) -> dict:
    """The arguments of ODVAE that give the published model these tensors belong to, its function included.

    Raises InputError where they are not a published model's, naming the first tensor that is missing.
    """
    if any(name.startswith("encoder.down_blocks.") for name in state):
        raise InputError(f"{source} holds tensors under diffusers' names; load it with ODVAE.from_pretrained(folder)")
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
    """For each of the VAE's tensors, the name and shape it has in a published checkpoint (`infer_settings`'s model)."""
    names = {}
    for module_name, module in vae.named_modules():
        # Their 3D convolutions sit one attribute down. Also those whose kernel is flat in time: the attention's, and
        # the decoder's layer that enlarges space alone.
        wrapped = isinstance(module, (CausalConv3d, nn.Linear))
        wrapped |= isinstance(module, FrameConv2d) and module_name.startswith("decoder.")
        for kind, tensor in module.named_parameters(recurse=False):
            shape = tuple(tensor.shape)
            if wrapped and kind == "weight":  # (o, i, [h, w]) -> (o, i, 1.., h, w)
                shape = shape[:2] + (1,) * (5 - len(shape)) + shape[2:]
            published = _published_module(module_name) + (".conv." if wrapped else ".") + kind
            names[f"{module_name}.{kind}"] = (published, shape)
    return names


def rename_tensors(state: Mapping[str, Tensor], vae: nn.Module, source: str | Path) -> dict[str, Tensor]:
    """Published tensors under ODVAE's names and shapes, float32 copies.

    Raises InputError that names a missing, extra or misshapen tensor.
    """
    names, own_shapes = published_names(vae), {name: tensor.shape for name, tensor in vae.state_dict().items()}
    expected = {published for published, _ in names.values()}
    if expected != state.keys():
        missing, extra = sorted(expected - state.keys()), sorted(state.keys() - expected)
        raise InputError(
            f"{source} is not a published OD-VAE: missing tensors {_shorten(missing)}; not expected {_shorten(extra)}"
        )
    renamed = {}
    for name, (published, shape) in names.items():
        found = tuple(state[published].shape)
        if found != shape:
            raise InputError(f"{source}: {published} has shape {found}, the model needs {shape}")
        renamed[name] = state[published].reshape(own_shapes[name]).to(torch.float32, copy=True)
    return renamed


# Parts of ODVAE's module names (diffusers' AutoencoderKL) and the published ones, in the order they are replaced.
_RENAMES: list[tuple[str, Any]] = [
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"down_blocks\.(\d+)\.downsamplers\.1", r"down.\1.time_downsample"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"up_blocks\.(\d+)\.upsamplers\.1", r"up.\1.time_upsample"),
    (r"up_blocks\.(\d+)\.resnets", r"up.\1.block"),
    (r"\.up\.(\d+)", lambda found: f".up.{LEVELS - 1 - int(found[1])}"),  # theirs count from full resolution
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]


def _published_module(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _find_file(path: Path) -> Path:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (*PICKLED, ".safetensors"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise InputError(f"{path} must hold one .safetensors, .ckpt, .pt or .pth file, found {found}")
        return files[0]
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    if path.suffix not in (*PICKLED, ".safetensors"):
        raise InputError(f"{path}: a checkpoint ends in .safetensors, .ckpt, .pt or .pth")
    return path


def _load_without_code(file: Path) -> object:
    """What torch.save wrote, tensors and plain values only. Mapped, so that an optimizer's state is never read."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError:
        raise  # the disk, not the file's content
    except Exception as error:  # torch has no one type for a broken file: Unpickling-, Runtime-, EOF-, ValueError, ...
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{file} holds a Python object ({refused[1]}), not only tensors. Loading it could run code, so it is "
                "refused; save its tensors as .safetensors first"
            ) from None
        raise InputError(f"{file} cannot be read as a PyTorch checkpoint: {str(error).splitlines()[0]}") from None


def _weights_of(checkpoint: object, file: Path) -> Mapping[str, Tensor]:
    """The VAE's weights in a checkpoint: the averaged ones, the generator's, or the checkpoint itself."""
    weights = checkpoint
    if isinstance(checkpoint, Mapping):
        if checkpoint.get("ema_state_dict"):
            weights = checkpoint["ema_state_dict"]
        elif isinstance(nested := checkpoint.get("state_dict"), Mapping):
            weights = nested.get("gen_model", nested)
    if not isinstance(weights, Mapping):
        raise InputError(f"{file} holds no weights by name, but a {type(weights).__name__}")
    wrong = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if wrong:
        raise InputError(
            f"{file} holds no weights: expected ema_state_dict, state_dict.gen_model or tensors by name, found "
            f"{_shorten(wrong)}"
        )
    return weights


def _tensor(state: Mapping[str, Tensor], name: str, source: str | Path) -> Tensor:
    if name not in state:
        raise InputError(f"{source} is not a published OD-VAE: {name} is missing")
    return state[name]


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
