"""Checkpoints that are whole or not there, and the way back from one.

A checkpoint holds weights and optimizer state (accelerate's format, loaded with weights_only; under FSDP2 each rank
writes its shards), the averaged weights and other state (safetensors) and `state.json`. There is no random state and no
data position in it: both are functions of the step.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_model, save_model
from torch import nn

from odvae.running.errors import InputError, write_errors_named
from odvae.running.files import read_json, write_json, write_text
from odvae.running.settings import Settings, differing_keys, read_yaml
from odvae.running.stage import StageClock
from odvae.training.ema import EMA
from odvae.training.optimization import MAY_CHANGE_ON_RESUME


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
        found = checkpoints_of(self.stage)
        if not found:
            return 0
        state = checkpoint_facts(found[-1])
        self._check_continues(found[-1], state)
        self.accelerator.load_state(str(found[-1]))
        for number, average in enumerate(self.averages):
            average.load(found[-1] / f"ema_{number}.safetensors")
        for number, small in enumerate(self.small_states):
            load_model(small, found[-1] / f"state_{number}.safetensors")
        return int(state["step"])

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
        if final.exists():
            return
        aside = self.folder / f".step_{step:08d}.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
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
            write_json(aside / "state.json", {"step": step, **self.facts})
            aside.rename(final)
            for old in checkpoints_of(self.stage)[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of the training in a stage's folder, the newest last."""
    return sorted((folder / "checkpoints").glob("step_*"))


def checkpoint_facts(checkpoint: Path) -> dict:
    """Its completed `step`s, `ranks`, `global_batch` and whether it is `sharded`."""
    return read_json(checkpoint / "state.json")


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag, so that a loop can finish its step, save and end.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self.before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self) -> None:
        """Let the signals do again what they did before: the loop that finishes its step is over."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, step: int, accelerator: Accelerator) -> bool:
        """Whether to stop after this step, the same answer on every rank.

        Several ranks ask each other only every tenth step: asking costs a reduction.
        """
        if accelerator.num_processes == 1:
            return bool(self.received)
        if step % 10:
            return False
        asked = torch.tensor(float(bool(self.received)), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum").item() > 0)

    def end(self, folder: Path, step: int, is_main: bool) -> NoReturn:
        """Say where the run stands and leave, with the exit status a signal gives (130: Ctrl-C, 143: SIGTERM)."""
        if is_main:
            print(f"\nstopped after step {step}, saved in {folder}; run the same command again to go on", flush=True)
        raise SystemExit(128 + (self.received or signal.SIGINT))


def begin_stage(folder: Path, sections: dict[str, Settings | dict | int], clock: StageClock) -> bool:
    """Record a stage's settings in its folder (`experiment.yaml`); the main process has locked it, the others wait.

    Returns whether an earlier run with the very same settings came to its end. Where none did, the stage is marked as
    unfinished at once. Raises InputError as `record_settings` does.
    """
    state = PartialState()
    done = False
    if state.is_main_process:
        done = record_settings(folder / "experiment.yaml", sections) and clock.finished
        if not done:
            clock.save(finished=False)
    return broadcast_object_list([done])[0]


def record_settings(path: Path, sections: dict[str, Settings | dict | int]) -> bool:
    """Write the resolved settings of a run, or check that a run already there was started with the same ones.

    Returns whether they are the same to the last key. Raises InputError naming each key that differs, except those in
    MAY_CHANGE_ON_RESUME (by last name).
    """
    resolved = {
        name: section.model_dump(mode="json") if isinstance(section, Settings) else section
        for name, section in sections.items()
    }
    same = False
    if path.exists():
        differing = differing_keys(read_yaml(path.read_text(), str(path)), resolved)
        changed = [
            f"  {key}: was {before!r}, now {now!r}"
            for key, (before, now) in differing.items()
            if key.rsplit(".", 1)[-1] not in MAY_CHANGE_ON_RESUME
        ]
        if changed:
            raise InputError(
                f"{path.parent} holds a run with other settings; choose another run folder (run=...) or remove it:\n"
                + "\n".join(changed)
            )
        same = not differing
    write_text(path, yaml.safe_dump(resolved, sort_keys=False))
    return same
