"""A running stage: locks its folder, checks and records its settings, records its time, handles stop signals."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from accelerate import PartialState

from odvae.running.allocator import keep_freed_memory
from odvae.running.distributed import decide_on_main_process, on_each_machine, uses_cuda, wait_for_everyone
from odvae.running.files import make_output_folder, remove_leftovers, write_json
from odvae.running.folder_lock import exclusive_update, shared_writer, sole_writer
from odvae.running.resume_check import check_not_made_by_0_1, read_stage_record, record_settings
from odvae.running.run_folder import code_version
from odvae.running.stop_signals import StopSignals
from odvae.storage.mirror import Choice, Mirror, errors_named, needed_to_resume, rename_in, warn_of_no_locks
from odvae.storage.paths import is_remote

RECORD = "stage.json"
SETTINGS = "experiment.yaml"
UPDATES = ".updates.lock"


class Stage:
    """Context of a command that writes into a folder; every rank enters and leaves it.

        with Stage(folder, sections) as stage:
            if stage.finished:
                return
            ...

    With `sections`, the settings that determine all files in the folder, the command is the folder's only writer: a
    second command is refused at once, incomplete files of a killed one are removed, and the settings must be the same
    as in earlier runs (`experiment.yaml`). Without, several commands may add to the folder; each must read and rewrite
    files within `updating`.

    `shared`: with `sections`, other commands with `shared` and the same settings may write to the folder at the same
    time, each other files; one without is refused meanwhile. Such a command does not finish the stage.

    `finished`: whether an earlier run with exactly the same settings is complete. If the block ends without an error,
    the stage becomes finished once every rank has arrived. `stage.json` records the minutes of all runs, the last
    command and its code version.

    `replaces_folder`: the folder is written as a whole with `atomic_folder`, so its lock is next to it and it has no
    stage.json; a second command is refused too.

    Stop signals end the block at once, except in a loop over `steps`, which first saves (`stop_requested`).

    A folder at a URL: `folder` is then its working copy on this machine (`odvae.storage.mirror`), `output` the URL, and
    `mirror` what is between them. At the beginning the working copy gets the files that `fetches` chooses; finished
    files are uploaded with every record and at the end. Nothing keeps other machines from writing there, which is said
    once. `label` distinguishes the working copies of `shared` commands of one machine.

    Raises InputError for a folder that cannot be written, is being written, or has a run with other settings.
    """

    def __init__(
        self,
        folder: Path,
        sections: Mapping[str, Any] | None = None,
        replaces_folder: bool = False,
        shared: bool = False,
        *,
        fetches: Choice = needed_to_resume,
        label: str = "",
    ) -> None:
        self.sections, self.replaces_folder, self.shared = sections, replaces_folder, shared
        self.output, self.mirror = folder, Mirror(folder, label) if is_remote(folder) else None
        self.folder = folder if self.mirror is None else self.mirror.folder
        self._fetches = fetches
        self.state = PartialState()
        self.signals = StopSignals()
        self.finished = self._is_updating = False
        self._held = contextlib.ExitStack()
        self._counted = time.monotonic()

    def __enter__(self) -> Stage:
        if not uses_cuda():
            keep_freed_memory()
        with contextlib.ExitStack() as held:
            self.signals.install()
            held.callback(self.signals.restore)
            if self.mirror is not None:
                held.enter_context(errors_named(self.folder, self.output))
                on_each_machine(lambda: self._open_working_copy(held))
            self.finished = decide_on_main_process(lambda: self._begin(held))
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        with self._held:
            if kind is None and not self.finished:
                self.exchange()
                self.record(finished=not self.shared)
            elif error is not None and self.mirror is not None:
                rename_in(error, self.folder, self.output)
        if kind is None:
            wait_for_everyone()

    def _open_working_copy(self, held: contextlib.ExitStack) -> None:
        """On one process of each machine: lock the working copy, and make it what the URL has."""
        assert self.mirror is not None
        if self.state.is_main_process:
            warn_of_no_locks(self.output)
        held.enter_context(self._sole_writer())
        self.mirror.open(self._fetches)

    def _sole_writer(self) -> AbstractContextManager[None]:
        beside = self.folder.with_name(f".{self.folder.name}.lock") if self.replaces_folder else None
        return sole_writer(self.folder, lock=beside)

    def _begin(self, held: contextlib.ExitStack) -> bool:
        """On the main process: lock, clean up, check and record. Returns whether the stage is already finished."""
        if self.sections is not None:
            check_not_made_by_0_1(self.folder / SETTINGS, self.sections)
        if self.replaces_folder:
            if self.mirror is None:
                held.enter_context(self._sole_writer())
            return False
        if self.sections is None:
            make_output_folder(self.folder)
            remove_leftovers(self.folder, dead_only=True)
            return False
        if self.mirror is None:
            held.enter_context(shared_writer(self.folder) if self.shared else self._sole_writer())
        with self.updating():
            same = record_settings(self.folder / SETTINGS, self.sections)
            finished = same and self._last_record()["finished"]
        if not finished:
            self.record()
        return finished

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Within it no other command changes files of this folder. Keep it short, since other commands wait for it."""
        alone = self.mirror is not None or self.replaces_folder or (self.sections is not None and not self.shared)
        if alone or self._is_updating:
            yield
            return
        with exclusive_update(self.folder, UPDATES) if self.shared else exclusive_update(self.folder):
            self._is_updating = True
            try:
                yield
            finally:
                self._is_updating = False

    def _last_record(self) -> dict[str, Any]:
        path = self.folder / RECORD
        return read_stage_record(path) if path.is_file() else {"minutes": 0.0, "finished": False}

    def record(self, finished: bool = False) -> None:
        """Add the time since the last record to `stage.json`, and upload what has changed. Only the main process
        writes."""
        if not self.state.is_main_process:
            return
        if not self.replaces_folder:
            self._record_time(finished)
        if self.mirror is not None:
            self.mirror.push()

    def _record_time(self, finished: bool) -> None:
        now = time.monotonic()
        with self.updating():
            minutes = self._last_record()["minutes"] + (now - self._counted) / 60
            record = {"minutes": round(minutes, 4), "finished": finished, "command": " ".join(sys.argv)}
            write_json(self.folder / RECORD, record | code_version())
        self._counted = now

    def exchange(self, choice: Choice = needed_to_resume) -> None:
        """Collective: wait for all ranks; then what each machine has written is on all, of the `choice` of files.

        A folder that is not at a URL is one that the machines have in common.
        """
        wait_for_everyone()
        if self.mirror is not None:
            on_each_machine(self.mirror.push)
            on_each_machine(functools.partial(self.mirror.refresh, choice))

    def before_release(self, action: Callable[[], object]) -> None:
        """Call `action` when the block ends, also by an error or a signal, while other commands are still kept out."""
        self._held.callback(action)

    def steps(self, first: int, last: int) -> Iterator[int]:
        """Yields the steps `first` to `last` of a training; stop signals are deferred until `stop_requested`."""
        with self.signals.deferred():
            yield from range(first, last + 1)

    def stop_requested(self) -> bool:
        """Whether a stop signal was received; then save and call `stop`. Call it once after every step, on all ranks.

        The result is the same on all ranks.
        """
        return self.signals.agreed()

    def stop(self, step: int) -> NoReturn:
        """Print the last step and exit with the status of the signal."""
        if self.state.is_main_process:
            print(
                f"\nstopped after step {step}, saved in {self.output}; run the same command again to resume", flush=True
            )
        raise SystemExit(128 + (self.signals.received or signal.SIGINT))


def names_of(**functions: Any) -> dict[str, dict[str, str]]:
    """A section for a stage's record with the names of the custom functions passed to it; None is left out."""
    names = {
        what: f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"
        for what, function in functions.items()
        if function is not None
    }
    return {"own": names} if names else {}
