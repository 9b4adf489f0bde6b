"""Atomic saving and loading of training checkpoints.

A checkpoint contains weights and optimizer state (accelerate's format, loaded with weights_only; under FSDP2 each rank
writes its shards), the EMA weights and other state (safetensors) and `state.json`. It has no random state and no data
position: both are functions of the step.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from odvae.running.distributed import decide_on_main_process
from odvae.running.errors import InputError, loading_model, write_errors_named
from odvae.running.files import parse_record, read_object, temporary_path, write_json
from odvae.training.ema import EMA

FORMAT = 2  # of a checkpoint's files and tensors; checkpoints of version 0.1 have no format number


class Checkpoints:
    """The `checkpoints/` folder of a training run (`step_00000500/`, ...), in which the newest `keep` are kept."""

    def __init__(
        self, folder: Path, accelerator: Accelerator, averages: list[EMA], keep: int, global_batch: int
    ) -> None:
        self.stage, self.folder, self.keep = folder, folder / "checkpoints", keep
        self.accelerator, self.averages = accelerator, averages
        self.small_states: list[nn.Module] = []
        self.facts = {"ranks": accelerator.num_processes, "global_batch": global_batch, "sharded": accelerator.is_fsdp2}

    def remember(self, state: nn.Module) -> None:
        """Also save and load the tensors of this small module, which must be the same on every rank."""
        self.small_states.append(state)

    def load_latest(self) -> int:
        """Load the newest checkpoint into the prepared objects and the EMA. Returns the completed steps; 0 if none.

        The number of ranks may have changed. Raises InputError if the global batch size has changed, or if only one of
        checkpoint and run is sharded (FSDP2).
        """
        newest = decide_on_main_process(self._newest)
        if newest is None:
            return 0
        name, step = newest
        folder = self.folder / name
        with loading_model(f"checkpoint {folder} (remove it to go on from the one before it)"):
            self.accelerator.load_state(str(folder))
            for number, average in enumerate(self.averages):
                average.load(folder / f"ema_{number}.safetensors")
            for number, small in enumerate(self.small_states):
                load_model(small, folder / f"state_{number}.safetensors")
        return step

    def _newest(self) -> tuple[str, int] | None:
        """Name and completed steps of the newest checkpoint."""
        found = checkpoints_of(self.stage)
        if not found:
            return None
        state = checkpoint_facts(found[-1])
        self._check_continues(found[-1], state)
        return found[-1].name, int(state["step"])

    def _check_continues(self, folder: Path, state: dict) -> None:
        if state["global_batch"] != self.facts["global_batch"]:
            raise InputError(
                f"{folder} was trained with {state['global_batch']} samples per step ({state['ranks']} ranks), but "
                f"this run has {self.facts['global_batch']} ({self.facts['ranks']} ranks): ranks * batch_size * "
                "gradient_accumulation_steps must stay the same"
            )
        if state["sharded"] != self.facts["sharded"]:
            kinds = {True: "sharded (FSDP2)", False: "not sharded"}
            raise InputError(
                f"{folder} is {kinds[state['sharded']]}, but this run is {kinds[self.facts['sharded']]}: resume with "
                "the accelerate config that the run was started with"
            )

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` completed steps, atomically."""
        final = self.folder / f"step_{step:08d}"
        name = decide_on_main_process(lambda: None if final.exists() else temporary_path(final).name)
        if name is None:
            return
        temporary = self.folder / name
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        with write_errors_named(temporary):
            self.accelerator.save_state(str(temporary))
            for number, average in enumerate(self.averages):
                average.save(temporary / f"ema_{number}.safetensors", self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for number, small in enumerate(self.small_states):
                save_model(small, str(temporary / f"state_{number}.safetensors"))
            write_json(temporary / "state.json", {"format": FORMAT, "step": step, **self.facts})
            temporary.rename(final)
            for old in checkpoints_of(self.stage)[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, newest last."""
    return sorted((folder / "checkpoints").glob("step_*"))


def checkpoint_facts(checkpoint: Path) -> dict:
    """The state.json of a checkpoint: completed `step`s, `ranks`, `global_batch`, and whether it is `sharded`.

    Raises InputError for another format.
    """
    facts = read_object(checkpoint / "state.json")
    if (found := facts.get("format", 1)) != FORMAT:
        by = "version 0.1" if found == 1 else "a later version"
        raise InputError(
            f"{checkpoint} was written by {by}, in format {found}; this version resumes from format {FORMAT}: choose "
            "another run folder (run=...), or finish this one with that version (docs/changes.md)"
        )
    return asdict(parse_record(_Facts, facts, checkpoint / "state.json"))


@dataclass(frozen=True)
class _Facts:
    """`state.json`."""

    format: int
    step: int
    ranks: int
    global_batch: int
    sharded: bool
