"""LoRA adapters of networks (Hu et al. 2021, arXiv 2106.09685), by peft through diffusers' mixin."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import USE_PEFT_BACKEND
from torch import Tensor, nn

from ldm.networks.settings import LoRASettings
from odvae.running.commands import install_extra
from odvae.running.errors import InputError
from odvae.running.text import shorten
from odvae.weights.pretrained import loading
from odvae.weights.weights_files import read_weights

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name
PREFIX = "transformer"  # of the tensors' names in such a file: the pipeline's component
ADAPTER = "default"  # name of the adapter that is trained

# The projections of diffusers' attention, and what holds them in ours, where several are one matrix.
_DIFFUSERS_PROJECTIONS = {"to_q", "to_k", "to_v"}
_DIFFUSERS_OUTPUTS = {"to_out", "to_out.0"}


class FusedProjectionsLoraMixin(PeftAdapterMixin):
    """diffusers' methods for adapters, for networks whose attention has `qkv`, or `q` and `kv`, and `out`.

    The usual list of diffusers, to_q, to_k, to_v and to_out.0, stands for these layers.
    """

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """As diffusers' `add_adapter`. Raises InputError for some but not all of to_q, to_k and to_v."""
        targets = getattr(adapter_config, "target_modules", None)
        if targets is not None and not isinstance(targets, str):
            adapter_config.target_modules = fused_projections(targets)
        super().add_adapter(adapter_config, adapter_name)


def fused_projections(targets: Collection[str]) -> set[str]:
    """Target names in which those of diffusers' attention are replaced by `qkv`, `q`, `kv` and `out`."""
    found = _DIFFUSERS_PROJECTIONS & set(targets)
    if found and found != _DIFFUSERS_PROJECTIONS:
        raise InputError(
            f"LoRA targets {', '.join(sorted(found))}: this network's attention has one matrix for queries, keys and "
            "values (qkv; q and kv in cross-attention); name all of to_q, to_k and to_v, or these"
        )
    own = {name for name in targets if name not in _DIFFUSERS_PROJECTIONS | _DIFFUSERS_OUTPUTS}
    outputs = {"out"} if _DIFFUSERS_OUTPUTS & set(targets) else set()
    return own | outputs | ({"qkv", "q", "kv"} if found else set())


def check_peft_installed(what: str) -> None:
    """Raise InputError where peft is missing or too old for diffusers."""
    if not USE_PEFT_BACKEND:
        raise InputError(f"{what} needs peft, which is not installed or too old: {install_extra('lora')}")


def add_lora(network: Any, settings: LoRASettings) -> None:
    """Freeze the network and add a new adapter, which is all that will be trained; it starts as no change.

    Raises InputError for targets that no linear layer or convolution of the network has.
    """
    check_peft_installed("ldm.lora")
    from peft import LoraConfig

    targets = settings.targets or [name for name in network.lora_targets if any(_matching(network, name))]
    if isinstance(network, FusedProjectionsLoraMixin):
        given = set(targets)  # of a list of diffusers, only those that the network has: no `kv` without text
        targets = sorted(one for one in fused_projections(targets) if one in given or any(_matching(network, one)))
    for target in targets:
        if not any(_matching(network, target)):
            kinds = {name.removeprefix(_block_of(name)) for name, _ in _adaptable(network)}
            raise InputError(
                f"ldm.lora.targets: {target!r} is the end of no layer's name in {type(network).__name__}; "
                f"its layers are {', '.join(sorted(kinds))}"
            )
    network.requires_grad_(False)
    alpha = settings.rank if settings.alpha is None else settings.alpha
    network.add_adapter(LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=targets), ADAPTER)


def _adaptable(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that peft can adapt, by name."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield name, module


def _matching(network: nn.Module, target: str) -> Iterator[str]:
    """Names of the layers that a target means, as peft matches them: the whole name, or its last parts."""
    return (name for name, _ in _adaptable(network) if name == target or name.endswith(f".{target}"))


def _block_of(name: str) -> str:
    """A layer's name up to the last number that another name follows: "blocks.0." of "blocks.0.mlp.fc1"."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts[:-1]) if part.isdecimal()]
    return ".".join(parts[: numbers[-1] + 1]) + "." if numbers else ""


def has_lora(network: nn.Module) -> bool:
    """Whether an adapter was added to the network."""
    return bool(getattr(network, "peft_config", None))


def save_lora(network: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write an adapter's `weights`, by the names of the network's parameters, as `load_lora_weights` reads them."""
    from diffusers.loaders import CogVideoXLoraLoaderMixin
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(network, state_dict=dict(weights), adapter_name=ADAPTER)
    CogVideoXLoraLoaderMixin.save_lora_weights(
        folder, layers, transformer_lora_adapter_metadata=network.peft_config[ADAPTER].to_dict()
    )


def merge_lora(network: Any, file: Path) -> None:
    """Add an adapter's matrices to the network's, which has no adapter before and after.

    Raises InputError for a file that is damaged, or is the adapter of another network.
    """
    check_peft_installed(str(file))
    with loading(str(file), file, "a LoRA"):
        check_lora_fits(network, read_weights(file))
        network.load_lora_adapter(file.parent, weight_name=file.name, prefix=PREFIX)
        network.fuse_lora()
        network.unload_lora()
    network.requires_grad_(False)


def check_lora_fits(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise InputError for an adapter of another network: with names or sizes of layers that this one lacks."""
    own = {name.removeprefix(f"{PREFIX}."): value for name, value in weights.items() if name.startswith(f"{PREFIX}.")}
    kind = type(network).__name__
    if not own:
        raise InputError(
            f"it is no LoRA of a {PREFIX}: its tensors are named {shorten(sorted(weights))}, not "
            f"{PREFIX}.LAYER.lora_A.weight"
        )
    layers = {name: _base(module) for name, module in network.named_modules()}
    problems = []
    for name, value in own.items():
        layer, _, part = name.rpartition(".lora_")
        if part not in ("A.weight", "B.weight"):  # other kinds of adapters, which peft checks
            continue
        weight = getattr(layers.get(layer), "weight", None)
        if weight is None:
            problems.append(f"{kind} has no layer {layer}")
            continue
        axis, side = (1, "takes") if part == "A.weight" else (0, "gives")
        if value.shape[axis] != weight.shape[axis]:
            problems.append(f"{layer} {side} {weight.shape[axis]} channels, in the LoRA {value.shape[axis]}")
    if problems:
        raise InputError(f"it is a LoRA of another network: {shorten(problems)}")


def _base(module: nn.Module) -> nn.Module:
    """The layer inside an adapter's layer."""
    return getattr(module, "base_layer", module)


def check_adapter_name(network: nn.Module, name: str | None) -> None:
    """Raise InputError for an adapter name that is in use."""
    used = list(getattr(network, "peft_config", None) or {})
    if name is not None and name in used:
        raise InputError(
            f"adapter_name={name!r} is in use (loaded: {', '.join(used)}); choose another one, or delete_adapters first"
        )
