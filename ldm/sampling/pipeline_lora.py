"""LoRA adapters of the pipeline's network, with the methods of diffusers' video pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.loaders import CogVideoXLoraLoaderMixin
from torch import Tensor

from ldm.networks.lora import check_adapter_name, check_lora_fits, check_peft_installed
from odvae.weights.pretrained import loading

if TYPE_CHECKING:  # what it is mixed into
    from diffusers import DiffusionPipeline as _Pipeline
else:
    _Pipeline = object


class LoraMixin(CogVideoXLoraLoaderMixin, _Pipeline):
    """`load_lora_weights`, `set_adapters`, `fuse_lora`, `unload_lora_weights` and the others; of the network alone."""

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load an adapter as diffusers does, from a file, a folder (also a run's ldm folder), the hub, or tensors.

        Only safetensors files are read. Raises InputError for an adapter of another network, a name that is in use,
        and where peft is not installed.
        """
        check_peft_installed("load_lora_weights")
        given = pretrained_model_name_or_path_or_dict
        if isinstance(given, dict):
            super().load_lora_weights(given, adapter_name, hotswap, **kwargs)
            return
        kwargs["use_safetensors"] = True
        with loading(str(given), given, "a LoRA"):
            super().load_lora_weights(str(given), adapter_name, hotswap, **kwargs)

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: dict[str, Tensor],
        transformer: Any,
        adapter_name: str | None = None,
        *args: Any,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """As diffusers', after checks that the adapter belongs to the network and its name is free."""
        if not hotswap:
            check_adapter_name(transformer, adapter_name)
        check_lora_fits(transformer, state_dict)
        super().load_lora_into_transformer(state_dict, transformer, adapter_name, *args, hotswap=hotswap, **kwargs)
