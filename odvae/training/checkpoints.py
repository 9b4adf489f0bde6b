"""Atomic saving and loading of training checkpoints.

A checkpoint contains weights and optimizer state (accelerate's format, loaded with weights_only; under FSDP2 each rank
writes its shards), the EMA weights and other state (safetensors) and `state.json`. It has no random state and no data
position: both are functions of the step. It can be written by a thread from a copy in the host's memory, while the
training goes on.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model
from torch import distributed as dist
from torch import nn

from odvae.running.distributed import decide_on_main_process, group_on_the_cpu, wait_for_everyone
from odvae.running.errors import InputError, write_errors_named
from odvae.running.files import flush_to_disk, parse_record, read_object, temporary_path, write_json
from odvae.storage.mirror import Mirror, is_working_copy
from odvae.training.background import BackgroundWork
from odvae.training.ema import EMA
from odvae.training.snapshot import Snapshot, check_shards_are_saved, take_snapshot
from odvae.weights.pretrained import broken_files, loading

FORMAT = 2  # of a checkpoint's files and tensors; checkpoints of version 0.1 have no format number


class Checkpoints:
    """The `checkpoints/` folder of a training run (`step_00000500/`, ...), in which the newest `keep` are kept.

    With a `mirror`, the folder is in the working copy of one at a URL: a checkpoint is uploaded when it is complete,
    its `state.json` last, and removed there when it is one too many, whichever machine has written it.

    All methods but `check` and `finish` are collective.
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
        self.writer = BackgroundWork("checkpoint writer")
        check_shards_are_saved(accelerator)
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
        """Write a checkpoint after `step` completed steps, atomically. First ends what `save_in_background` began."""
        self.finish()
        if (temporary := self._new_folder(step)) is None:
            return
        snapshot = take_snapshot(self.accelerator, self.averages, self.small_states, copy=False)
        self._write(snapshot, temporary, step, self._group())
        wait_for_everyone()  # also for as long as the main process writes: longer than a step may wait for gradients

    def save_in_background(self, step: int) -> None:
        """Copy the state after `step` completed steps to the host's memory, and have a thread write the checkpoint.

        Until it is complete, what it has written is not a checkpoint. At most one is being written: a second call first
        waits for the first. `check`, `finish` and the next save raise the errors of writing; nothing else than the
        thread may use the mirror before `finish`.
        """
        self.finish()
        if (temporary := self._new_folder(step)) is None:
            return
        snapshot = take_snapshot(self.accelerator, self.averages, self.small_states, copy=True)
        if not snapshot.is_empty:
            self.writer.start(functools.partial(self._write, snapshot, temporary, step, self._group()))

    def check(self) -> None:
        """Raise the error of a thread that could not write this rank's part of a checkpoint."""
        self.writer.check()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        self.writer.finish()

    def _new_folder(self, step: int) -> Path | None:
        """A folder for what is not complete; None if there is a checkpoint of this step."""

        def name() -> str | None:
            final = self._final(step)
            if final.exists():
                return None
            self.folder.mkdir(parents=True, exist_ok=True)
            return temporary_path(final).name

        chosen = decide_on_main_process(name)
        return None if chosen is None else self.folder / chosen

    def _final(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _group(self) -> dist.ProcessGroup | None:
        """The group of the threads that write shards; None where only the main process writes."""
        return group_on_the_cpu("checkpoints") if self.accelerator.is_fsdp2 else None

    def _write(self, snapshot: Snapshot, temporary: Path, step: int, group: dist.ProcessGroup | None) -> None:
        """Write this rank's part. The main process then makes it a checkpoint: all shards are written before that."""
        final = self._final(step)
        with write_errors_named(final), self._removed_on_failure(temporary):
            if self.accelerator.is_main_process:
                temporary.mkdir(exist_ok=True)  # another rank, with its shards, may have been faster
            snapshot.write(temporary, group)
            if self.accelerator.is_main_process:
                write_json(temporary / "state.json", {"format": FORMAT, "step": step, **self.facts})
                flush_to_disk(temporary)
                temporary.rename(final)
        if self.accelerator.is_main_process:
            for old in checkpoints_of(self.stage)[: -self.keep]:
                shutil.rmtree(old)
        if self.mirror is not None:
            self._upload(self.mirror, temporary, final, group)

    @contextlib.contextmanager
    def _removed_on_failure(self, temporary: Path) -> Iterator[None]:
        """Within it, a failure removes the folder, so that a disk that was full has space again."""
        try:
            yield
        except BaseException:
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _upload(self, mirror: Mirror, temporary: Path, final: Path, group: dist.ProcessGroup | None) -> None:
        """Upload a checkpoint: the shards that other machines have written of it, then the main process's files."""
        within = self.folder.relative_to(mirror.folder).as_posix()
        if group is not None:
            if self.accelerator.is_local_main_process and not self.accelerator.is_main_process and temporary.exists():
                temporary.rename(final)
                mirror.push(within)
                mirror.forget(f"{within}/{final.name}")  # its state.json is on another machine: not complete here
            dist.barrier(group)
        if self.accelerator.is_main_process:
            mirror.push(within)
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
