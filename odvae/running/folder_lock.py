"""One writer a folder: a second command that would write into the same one ends with an error instead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState

from odvae.running.errors import InputError
from odvae.running.files import make_output_folder

LOCK = ".lock"


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, and remove what a killed writer left half-written. Raises InputError where it is held.

    The lock ends with the process, however it ends, so a killed run never keeps its successor out.
    """
    make_output_folder(folder)
    with open(folder / LOCK, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise InputError(
                f"{folder} is being written by another process ({lock.read().strip()}); wait for it, or end it"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        for leftover in folder.glob(".*.partial"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield


@contextlib.contextmanager
def main_process_writes(folder: Path) -> Iterator[None]:
    """The launch's main process is the folder's sole writer; the other ranks wait until it is."""
    state = PartialState()
    with sole_writer(folder) if state.is_main_process else contextlib.nullcontext():
        state.wait_for_everyone()
        yield
