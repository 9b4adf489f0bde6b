"""Checkpoints that are whole or not there, and the way back from one.

A checkpoint holds weights and optimizer state (accelerate's format, loaded with weights_only; under FSDP2 each rank
writes its shards), the averaged weights and other state (safetensors) and `state.json`. There is no random state and no
data position in it: both are functions of the step.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from odvae.running.distributed import decide_on_main_process
from odvae.running.errors import InputError, write_errors_named
from odvae.running.files import read_json, temporary_path, write_json
from odvae.training.ema import EMA

FORMAT = 2  # of a checkpoint's files and tensors; 1, which version 0.1 wrote, says no number


class Checkpoints:
    """The `checkpoints/` folder of one training run: `step_000500/ ...`, the newest `keep` of them."""

    def __init__(
        self, folder: Path, accelerator: Accelerator, averages: list[EMA], keep: int, global_batch: int
    ) -> None:
        self.stage, self.folder, self.keep = folder, folder / "checkpoints", keep
        self.accelerator, self.averages = accelerator, averages
        self.small_states: list[nn.Module] = []
        self.facts = {"ranks": accelerator.num_processes, "global_batch": global_batch, "sharded": accelerator.is_fsdp2}

    def remember(self, state: nn.Module) -> None:
        """Save and restore this module's few tensors too; they are the same on every rank."""
        self.small_states.append(state)

    def load_latest(self) -> int:
        """Restore what the accelerator prepared, and the averages; returns the completed steps (0: nothing there).

        The number of ranks may be another than when it was saved. Raises InputError where the global batch differs, or
        sharded (FSDP2) and whole checkpoints would mix.
        """
        newest = decide_on_main_process(self._newest)
        if newest is None:
            return 0
        name, step = newest
        folder = self.folder / name
        self.accelerator.load_state(str(folder))
        for number, average in enumerate(self.averages):
            average.load(folder / f"ema_{number}.safetensors")
        for number, small in enumerate(self.small_states):
            load_model(small, folder / f"state_{number}.safetensors")
        return step

    def _newest(self) -> tuple[str, int] | None:
        """Name and completed steps of the checkpoint to go on from."""
        found = checkpoints_of(self.stage)
        if not found:
            return None
        state = checkpoint_facts(found[-1])
        self._check_continues(found[-1], state)
        return found[-1].name, int(state["step"])

    def _check_continues(self, folder: Path, state: dict) -> None:
        if state["global_batch"] != self.facts["global_batch"]:
            raise InputError(
                f"{folder} was trained with {state['global_batch']} samples a step ({state['ranks']} ranks), this run "
                f"would go on with {self.facts['global_batch']} ({self.facts['ranks']} ranks): ranks * batch_size * "
                "gradient_accumulation_steps must stay the same"
            )
        if state["sharded"] != self.facts["sharded"]:
            kinds = {True: "sharded (FSDP2)", False: "whole"}
            raise InputError(
                f"{folder} is {kinds[state['sharded']]}, this run's state is {kinds[self.facts['sharded']]}: go on "
                "with the accelerate config it began with"
            )

    def save(self, step: int) -> None:
        """Write the state after `step` completed steps; an interrupted write leaves no checkpoint behind."""
        final = self.folder / f"step_{step:08d}"
        name = decide_on_main_process(lambda: None if final.exists() else temporary_path(final).name)
        if name is None:
            return
        aside = self.folder / name
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        with write_errors_named(aside):
            self.accelerator.save_state(str(aside))
            for number, average in enumerate(self.averages):
                average.save(aside / f"ema_{number}.safetensors", self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for number, small in enumerate(self.small_states):
                save_model(small, str(aside / f"state_{number}.safetensors"))
            write_json(aside / "state.json", {"format": FORMAT, "step": step, **self.facts})
            aside.rename(final)
            for old in checkpoints_of(self.stage)[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of the training in a stage's folder, the newest last."""
    return sorted((folder / "checkpoints").glob("step_*"))


def checkpoint_facts(checkpoint: Path) -> dict:
    """Its completed `step`s, `ranks`, `global_batch` and whether it is `sharded`.

    Raises InputError for one in another format.
    """
    facts = read_json(checkpoint / "state.json")
    if (found := facts.get("format", 1)) != FORMAT:
        by = "version 0.1" if found == 1 else "a later version"
        raise InputError(
            f"{checkpoint} was written by {by}, in format {found}; this version goes on from format {FORMAT}: choose "
            "another run folder (run=...), or finish this one with that version (docs/changes.md)"
        )
    return facts
