"""Single-file checkpoints of image VAEs in the format of latent-diffusion: SD, SDXL, SD3 and FLUX as first published.

Their tensors have other names than those of diffusers' AutoencoderKL, and their sizes are inferred from the tensors, so
no config.json is needed. Open-Sora-Plan's video VAEs have the same names (`odvae.opensora_plan`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odvae.running.errors import InputError
from odvae.running.text import shorten
from odvae.weights.weights_files import read_weights

if TYPE_CHECKING:
    from torch import Tensor

NORM_GROUPS = 32  # a constant in the published code; it cannot be inferred from the tensors' shapes

# In front of the VAE's tensors in the checkpoint of a whole pipeline; none in that of a VAE alone.
_PREFIXES = ("", "first_stage_model.", "vae.")
# Neither in files with the names of diffusers, nor in those of video VAEs (".conv1.conv.weight").
_OF_IMAGES = "encoder.mid.block_1.conv1.weight"
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

# Parts of the module names of diffusers' AutoencoderKL and of ODVAE -> names here, in the order of replacement.
_RENAMES = [
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"down_blocks\.(\d+)\.downsamplers\.1", r"down.\1.time_downsample"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"up_blocks\.(\d+)\.upsamplers\.1", r"up.\1.time_upsample"),
    (r"up_blocks\.(\d+)\.resnets", r"up.\1.block"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]


def ldm_name(name: str, levels: int) -> str:
    """The name here of a module or tensor that diffusers' AutoencoderKL or ODVAE calls `name`."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    # Levels of the decoder are counted from full resolution here.
    return re.sub(r"\.up\.(\d+)", lambda found: f".up.{levels - 1 - int(found[1])}", name)


def read_image_vae(path: str | Path) -> dict[str, Tensor] | None:
    """The image VAE's tensors, by their names here, in a file of a VAE or of a whole pipeline; None if it has none.

    Raises InputError for a file that is missing, broken, or contains anything but plain values and tensors.
    """
    state = read_weights(path)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    for prefix in _PREFIXES if isinstance(state, Mapping) else ():
        if f"{prefix}{_OF_IMAGES}" in state:
            names = {name: name.removeprefix(prefix) for name in state if str(name).startswith(prefix)}
            return {short: state[name] for name, short in names.items() if short.startswith(_PARTS)}
    return None


def image_vae_config(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Any]:
    """The arguments of AutoencoderKL for these tensors. Raises InputError, which names a tensor that is missing.

    The scaling factor is not in the file: it is null.
    """
    blocks = [
        found for name in state if (found := re.match(r"encoder\.down\.(\d+)\.block\.(\d+)\.norm2\.weight", name))
    ]
    levels = max((int(found[1]) for found in blocks), default=0) + 1
    norms = [f"encoder.down.{i}.block.0.norm2.weight" for i in range(levels)]
    for name in (*norms, "decoder.conv_in.weight"):
        if name not in state:
            raise InputError(f"{source} is not an image VAE in the format of latent-diffusion: {name} is missing")
    return {
        "block_out_channels": tuple(state[name].shape[0] for name in norms),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": max(int(found[2]) for found in blocks) + 1,
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "norm_num_groups": NORM_GROUPS,
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state,
        "scaling_factor": None,
    }


def rename_image_vae(
    state: Mapping[str, Tensor], like: Mapping[str, Tensor], levels: int, source: str | Path
) -> dict[str, Tensor]:
    """The tensors with the names and shapes of AutoencoderKL's, which are `like`'s, in float32.

    Raises InputError with the names of missing or unexpected tensors, or of a tensor of another shape.
    """
    names = {name: ldm_name(name, levels) for name in like}
    missing, extra = sorted({*names.values()} - state.keys()), sorted(state.keys() - {*names.values()})
    if missing or extra:
        raise InputError(
            f"{source} is not an image VAE in the format of latent-diffusion: missing tensors {shorten(missing)}; "
            f"not expected {shorten(extra)}"
        )
    for name, theirs in names.items():
        if state[theirs].numel() != like[name].numel() or state[theirs].shape[:1] != like[name].shape[:1]:
            found, expected = tuple(state[theirs].shape), tuple(like[name].shape)
            raise InputError(f"{source}: {theirs} has shape {found}, the model needs {expected}")
    return {name: state[theirs].reshape(like[name].shape).float() for name, theirs in names.items()}
