"""Locks on folders, so that two commands never write over each other's work.

A command that writes a folder for long holds its lock all the while, and a second one ends with an error at once
(`sole_writer`). Where several commands may add to one folder, each holds the lock only while it changes a file, and the
others wait that long (`exclusive_update`).

The kernel's flock is called directly: it ends with the process, however that ends, so a killed run never keeps its
successor out. (The `filelock` library takes a file system without locks for a lock that is held, up to its version 3,
or falls back to lock files that outlive a kill.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from odvae.running.errors import InputError
from odvae.running.files import make_output_folder, remove_leftovers

LOCK = ".lock"
PATIENCE = 600  # seconds that an update waits for the one before

# What flock answers where another process holds the lock, and where the file system has no locks (NFS without a lock
# daemon, Lustre mounted without `flock`).
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

_held_files: set[TextIO] = set()
_warned: set[Path] = set()


@contextlib.contextmanager
def sole_writer(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Be the one that writes into a folder, and remove what a killed writer left half-written.

    `lock` is the lock's file, where it is not the folder's `.lock`. Raises InputError where another process holds it.
    """
    make_output_folder(folder if lock is None else lock.parent)
    held = f"{folder} is being written by another process ({{}}); wait for it, or end it"
    with _locked(lock or folder / LOCK, 0, held):
        remove_leftovers(folder)
        yield


@contextlib.contextmanager
def exclusive_update(folder: Path) -> Iterator[None]:
    """Read, change and write files of the folder while no other process does; waits for those before."""
    held = f"another process ({{}}) has been changing files of {folder} for {PATIENCE} s; end it"
    with _locked(folder / LOCK, PATIENCE, held):
        yield


@contextlib.contextmanager
def _locked(path: Path, patience: float, message: str) -> Iterator[None]:
    with open(path, "a+") as file:
        _acquire(file, path, patience, message)
        _held_files.add(file)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
        finally:
            _held_files.discard(file)


def _acquire(file: TextIO, path: Path, patience: float, message: str) -> None:
    """Lock the file within `patience` seconds. Raises InputError with `message`, which takes the holder's name."""
    give_up, announced = time.monotonic() + patience, not patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                _warn_once(path, error)
                return
            if error.errno not in _HELD:
                raise
        file.seek(0)
        holder = file.read().strip()
        if time.monotonic() >= give_up:
            raise InputError(message.format(holder)) from None
        if not announced and time.monotonic() > give_up - patience + 5:
            print(f"waiting for another process ({holder}) that updates {path.parent}", file=sys.stderr, flush=True)
            announced = True
        time.sleep(0.05)


def _warn_once(path: Path, error: OSError) -> None:
    if path not in _warned:
        _warned.add(path)
        print(
            f"warning: the file system of {path.parent} has no locks ({error.strerror}); make sure that no other "
            "command writes there meanwhile",
            file=sys.stderr,
            flush=True,
        )


def _close_in_child() -> None:
    """A worker process has a copy of the open file, and would hold the lock when its parent was killed."""
    for file in _held_files:
        file.close()
    _held_files.clear()


os.register_at_fork(after_in_child=_close_in_child)
