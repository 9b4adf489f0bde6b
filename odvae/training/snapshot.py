"""The tensors of a training checkpoint: collected at a step, copied to the host's memory if asked, and written.

The files are those that accelerate's `load_state` reads, with `ema_N.safetensors` and `state_N.safetensors` beside
them. accelerate's `save_state` is not used, since it reads the tensors while it writes: no step could change them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import clean_state_dict_for_safetensors
from accelerate.utils.constants import FSDP_MODEL_NAME, OPTIMIZER_NAME, SAFE_MODEL_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

from odvae.running.errors import InputError
from odvae.training.ema import EMA

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """All tensors of a checkpoint: on every rank its shards (FSDP2); whole files on the main process only."""

    tensors: dict[str, dict[str, Tensor]]
    """Of each safetensors file."""
    optimizers: dict[str, Any]
    """State of each optimizer by file, where they are not sharded."""
    sharded: dict[str, dict[str, Any]]
    """Of each folder of shards."""

    @property
    def is_empty(self) -> bool:
        """Whether this rank has nothing to write."""
        return not (self.tensors or self.optimizers or self.sharded)

    def write(self, folder: Path, group: dist.ProcessGroup | None) -> None:
        """Write this rank's part. With shards it is collective over `group`, and ends when every rank's are written.

        An error of any rank with its shards is raised on all of them.
        """
        try:
            for name, state in self.sharded.items():
                writer = dcp.FileSystemWriter(folder / name)  # it creates the folder, and flushes each file to the disk
                dcp.save(state, storage_writer=writer, process_group=group)
        except CheckpointException as error:
            raise _first_of(error) from None
        for name, tensors in self.tensors.items():
            save_file(tensors, folder / name, metadata={"format": "pt"})
        for name, state in self.optimizers.items():
            torch.save(state, folder / name)


def take_snapshot(
    accelerator: Accelerator, averages: Sequence[EMA], small_states: Sequence[nn.Module], copy: bool
) -> Snapshot:
    """The present tensors of all prepared objects, EMA weights and small modules. Collective under FSDP2.

    `copy`: in memory of the host, so that they remain those of this step while the training goes on; otherwise they
    are the training's own.
    """
    taken: Callable[[T], T] = copied_to_host if copy else _as_it_is
    is_main = accelerator.is_main_process
    tensors = {f"ema_{number}.safetensors": average.gather(is_main, copy) for number, average in enumerate(averages)}
    optimizers: dict[str, Any] = {}
    sharded: dict[str, dict[str, Any]] = {}
    if accelerator.is_fsdp2:
        options = StateDictOptions(cpu_offload=not copy)
        for number, model in enumerate(accelerator._models):
            state = get_model_state_dict(model, options=options)
            sharded[f"{FSDP_MODEL_NAME}_{number}"] = {"model": taken(state)}
        for number, optimizer in enumerate(accelerator._optimizers):
            state = get_optimizer_state_dict(accelerator._models[number], optimizer, options=options)
            sharded[f"{OPTIMIZER_NAME}_{number}"] = {"optimizer": taken(state)}
    if not is_main:
        return Snapshot({}, {}, sharded)
    if not accelerator.is_fsdp2:
        for number, model in enumerate(accelerator._models):
            state = taken(accelerator.get_state_dict(model, unwrap=False))
            tensors[f"{SAFE_MODEL_NAME}{_ending(number)}.safetensors"] = clean_state_dict_for_safetensors(state)
        for number, optimizer in enumerate(accelerator._optimizers):
            optimizers[f"{OPTIMIZER_NAME}{_ending(number)}.bin"] = taken(optimizer.state_dict())
    for number, small in enumerate(small_states):
        tensors[f"state_{number}.safetensors"] = clean_state_dict_for_safetensors(taken(small.state_dict()))
    return Snapshot(tensors, optimizers, sharded)


def copied_to_host(state: T) -> T:
    """A copy of a state dict whose tensors are in the host's memory; shards (DTensors) remain shards."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied_to_host(value) for key, value in state.items()}  # type: ignore[return-value]
    if isinstance(state, (list, tuple)):
        return type(state)(copied_to_host(value) for value in state)
    return state  # numbers and names


def check_shards_are_saved(accelerator: Accelerator) -> None:
    """Raise InputError where accelerate's config would have FSDP2 gather the whole state on one rank to save it."""
    if not accelerator.is_fsdp2:
        return
    found = accelerator.state.fsdp_plugin.state_dict_type
    if found.name != "SHARDED_STATE_DICT":
        raise InputError(
            f"accelerate's config has fsdp_state_dict_type: {found.name}; checkpoints are saved by shards: set "
            "SHARDED_STATE_DICT (configs/accelerate/fsdp2.yaml)"
        )


def _as_it_is(state: T) -> T:
    return state


def _ending(number: int) -> str:
    return f"_{number}" if number else ""


def _first_of(error: CheckpointException) -> Exception:
    """The first rank's own error where it may be one that a user understands, such as of a full disk."""
    found: BaseException = error.failures[min(error.failures)][0]
    return found if isinstance(found, (OSError, RuntimeError)) else RuntimeError(str(error))
