"""Folder locks (flock), so that two commands never overwrite each other's files.

A command that writes a folder for a long time holds its lock throughout, and a second one ends with an error at once
(`sole_writer`). Where several commands may add to one folder, each holds the lock only while it changes a file, and the
others wait (`exclusive_update`); or they hold it together (`shared_writer`), which keeps a sole writer out.

The kernel's flock is called directly: it ends with the process, so a killed run never blocks the next one. (The
`filelock` library mistakes a file system without locks for a held lock, or, in later versions, falls back to lock files
that remain after a kill.)
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

from odvae.running.errors import InputError, write_errors_named
from odvae.running.files import make_output_folder, remove_leftovers

LOCK = ".lock"
TIMEOUT = 600  # seconds to wait for another update

# Error codes of flock if another process holds the lock, and if the file system has no locks (NFS without a lock
# daemon, Lustre mounted without `flock`).
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

_held_files: set[TextIO] = set()
_warned: set[Path] = set()


@contextlib.contextmanager
def sole_writer(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Hold the lock of a folder as its only writer, and remove incomplete files that a killed writer left in it.

    `lock`: the lock file, if it is not `.lock` in the folder. Raises InputError if another process holds it.
    """
    make_output_folder(folder if lock is None else lock.parent)
    held = f"{folder} is being written by another process ({{}}); wait for it, or end it"
    with _locked(lock or folder / LOCK, 0, held):
        remove_leftovers(folder)
        yield


@contextlib.contextmanager
def shared_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder together with other shared writers, which write other files, or the same bytes.

    Incomplete files of processes of this machine that have ended are removed. Raises InputError if a `sole_writer`
    holds it.
    """
    make_output_folder(folder)
    held = f"{folder} is being written as a whole by another process ({{}}); wait for it, or end it"
    with _locked(folder / LOCK, 0, held, fcntl.LOCK_SH):
        remove_leftovers(folder, dead_only=True)
        yield


@contextlib.contextmanager
def exclusive_update(folder: Path, lock: str = LOCK, timeout: float | None = None) -> Iterator[None]:
    """Hold the folder's lock while its files are changed; waits until other processes have released it.

    `lock`: the lock file's name. Raises InputError if one holds it for longer than `timeout` seconds (None: TIMEOUT).
    """
    timeout = TIMEOUT if timeout is None else timeout
    held = f"another process ({{}}) has been changing files of {folder} for {timeout} s; end it"
    with _locked(folder / lock, timeout, held):
        yield


def is_being_written(folder: Path) -> bool:
    """Whether a process has the lock of a folder now, as its only writer or as one of several."""
    if not (folder / LOCK).is_file():
        return False
    with open(folder / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _HELD
        return False


@contextlib.contextmanager
def _locked(path: Path, timeout: float, message: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    with open(path, "a+") as file:
        _acquire(file, path, timeout, message, kind)
        _held_files.add(file)
        try:
            file.truncate(0)
            with write_errors_named(path):  # without a buffer, which would be written again, and fail, at the end
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield
        finally:
            _held_files.discard(file)


def _acquire(file: TextIO, path: Path, timeout: float, message: str, kind: int) -> None:
    """Lock the file within `timeout` seconds. Raises InputError with `message`, formatted with the holder's name."""
    deadline, announced = time.monotonic() + timeout, not timeout
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                _warn_once(path, error)
                return
            if error.errno not in _HELD:
                raise
        file.seek(0)
        holder = file.read().strip()
        if time.monotonic() >= deadline:
            raise InputError(message.format(holder)) from None
        if not announced and time.monotonic() > deadline - timeout + 5:
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
    """Close a worker's copies of the open files, with which it would keep the locks after its parent is killed."""
    for file in _held_files:
        file.close()
    _held_files.clear()


os.register_at_fork(after_in_child=_close_in_child)
