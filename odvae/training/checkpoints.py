"""Atomic saving and loading of training checkpoints.

A checkpoint contains weights and optimizer state (accelerate's format, loaded with weights_only; under FSDP2 each rank
writes its shards), the EMA weights and other state (safetensors) and `state.json`. It has no random state and no data
position: both are functions of the step.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from odvae.running.distributed import decide_on_main_process, wait_for_everyone
from odvae.running.errors import InputError, write_errors_named
from odvae.running.files import flush_to_disk, parse_record, read_object, temporary_path, write_json
from odvae.storage.mirror import Mirror, is_working_copy
from odvae.training.ema import EMA
from odvae.weights.pretrained import broken_files, loading

FORMAT = 2  # of a checkpoint's files and tensors; checkpoints of version 0.1 have no format number


class Checkpoints:
    """The `checkpoints/` folder of a training run (`step_00000500/`, ...), in which the newest `keep` are kept.

    With a `mirror`, the folder is in the working copy of one at a URL: a checkpoint is uploaded when it is complete,
    its `state.json` last, and removed there when it is one too many, whichever machine has written it.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        averages: list[EMA],
        keep: int,
        global_batch: int,
        mirror: Mirror | None = None,
    ) -> None:
        self.stage, self.folder, self.keep, self.mirror = folder, folder / "checkpoints", keep, mirror
        self.accelerator, self.averages = accelerator, averages
        self.small_states: list[nn.Module] = []
        self.facts = {"ranks": accelerator.num_processes, "global_batch": global_batch, "sharded": accelerator.is_fsdp2}

    def remember(self, state: nn.Module) -> None:
        """Also save and load the tensors of this small module, which must be the same on every rank."""
        self.small_states.append(state)

    def load_latest(self) -> int:
        """Load the newest checkpoint into the prepared objects and the EMA. Returns the completed steps; 0 if none.

        The number of ranks may have changed. Raises InputError if the global batch size has changed, if only one of
        checkpoint and run is sharded (FSDP2), or if the newest is incomplete, with the way back to the one before.
        """
        newest = decide_on_main_process(self._newest)
        if newest is None:
            return 0
        name, step = newest
        folder = self.folder / name
        with loading(f"checkpoint {folder}", folder, "this run's state", way_back(folder)):
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
        self._check_complete(found[-1])
        return found[-1].name, int(state["step"])

    def _check_complete(self, folder: Path) -> None:
        """Raise InputError with all missing or truncated files of a checkpoint, before any is loaded."""
        expected = [f"ema_{number}.safetensors" for number in range(len(self.averages))]
        expected += [f"state_{number}.safetensors" for number in range(len(self.small_states))]
        missing = [f"{folder / name} does not exist" for name in expected if not (folder / name).exists()]
        if problems := missing + broken_files(folder):
            raise InputError(f"{'; '.join(problems)}. {way_back(folder)}")

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
        wait_for_everyone()
        with write_errors_named(final), self._removed_on_failure(temporary):
            self.accelerator.save_state(str(temporary))
            for number, average in enumerate(self.averages):
                average.save(temporary / f"ema_{number}.safetensors", self.accelerator.is_main_process)
            wait_for_everyone()
            if self.accelerator.is_main_process:
                for number, small in enumerate(self.small_states):
                    save_model(small, str(temporary / f"state_{number}.safetensors"))
                write_json(temporary / "state.json", {"format": FORMAT, "step": step, **self.facts})
                flush_to_disk(temporary)
                temporary.rename(final)
        if self.accelerator.is_main_process:
            for old in checkpoints_of(self.stage)[: -self.keep]:
                shutil.rmtree(old)
        wait_for_everyone()
        if self.mirror is not None:
            self._upload(self.mirror, temporary, final)
            wait_for_everyone()

    @contextlib.contextmanager
    def _removed_on_failure(self, temporary: Path) -> Iterator[None]:
        """Within it, a failure removes the folder, so that a disk that was full has space again."""
        try:
            yield
        except BaseException:
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _upload(self, mirror: Mirror, temporary: Path, final: Path) -> None:
        """Upload a checkpoint: the files that other machines have written of it, then those of the main process."""
        within = self.folder.relative_to(mirror.folder).as_posix()
        if self.accelerator.is_local_main_process and not self.accelerator.is_main_process and temporary.exists():
            temporary.rename(final)
            mirror.push()
            mirror.forget(f"{within}/{final.name}")  # its state.json is on another machine: it is not complete here
        wait_for_everyone()
        if self.accelerator.is_main_process:
            mirror.push()
            at_url = {name.removeprefix(f"{within}/").partition("/")[0] for name in mirror.below(within)}
            for old in sorted(at_url)[: -self.keep]:
                mirror.delete(f"{within}/{old}")


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, newest last."""
    return sorted((folder / "checkpoints").glob("step_*"))


def way_back(checkpoint: Path) -> str:
    """What to do about an incomplete checkpoint: resume from the previous one, or start again.

    The training of an image VAE (whose folder is not that of a stage) is not resumed once its model is saved.
    """
    if is_working_copy(checkpoint):
        return (
            f"Restore a complete copy, or remove {checkpoint} and run the same command again: the training resumes "
            "from the newest of the others, or starts from scratch"
        )
    folder, then = checkpoint.parents[1], "the training starts from scratch"
    moved, before = checkpoint, [other for other in checkpoints_of(folder) if other < checkpoint]
    if (folder / "config.json").exists() and not (folder / "stage.json").exists():
        moved, then = checkpoint.parent, f"the model in {folder} is complete and is used"
    elif before:
        then = f"the training resumes from {before[-1].name}, the previous one"
    words = shlex.join(["mv", str(moved), str(folder / f"broken_{moved.name}")])
    return f"Restore a complete copy, or move it away and run the same command again ({words}): {then}"


def checkpoint_facts(checkpoint: Path) -> dict:
    """The state.json of a checkpoint: completed `step`s, `ranks`, `global_batch`, and whether it is `sharded`.

    Raises InputError for another format, and for an incomplete record.
    """
    path = checkpoint / "state.json"
    try:
        facts = read_object(path)
        facts.setdefault("format", 1)  # version 0.1 wrote none
        record = parse_record(_Facts, facts, path) if facts["format"] == FORMAT else None
    except InputError as error:
        raise InputError(f"{error}. {way_back(checkpoint)}") from None
    if record is None:
        found = facts["format"]
        by = "version 0.1" if found == 1 else "a later version"
        raise InputError(
            f"{checkpoint} was written by {by}, in format {found}; this version resumes from format {FORMAT}: choose "
            "another run folder (run=...), or finish this one with that version (docs/changes.md)"
        )
    return asdict(record)


@dataclass(frozen=True)
class _Facts:
    """The content of a checkpoint's state.json."""

    format: int
    step: int
    ranks: int
    global_batch: int
    sharded: bool
