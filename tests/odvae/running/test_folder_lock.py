"""Folder locks: file systems without locks, worker processes, timeouts."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time

import pytest

from odvae.running import folder_lock
from odvae.running.errors import InputError
from odvae.running.folder_lock import exclusive_update, sole_writer


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
@pytest.mark.parametrize("lock", [sole_writer, exclusive_update])
def test_a_file_system_without_locks_gives_one_warning_and_no_error(tmp_path, monkeypatch, capsys, code, lock):
    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(2):
        with lock(tmp_path):
            (tmp_path / "work").write_text("done")
    printed = capsys.readouterr().err
    assert printed.count("warning: ") == 1
    assert f"the file system of {tmp_path} has no locks ({os.strerror(code)})" in printed
    assert "make sure that no other command writes there" in printed


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_is_held_is_an_error_that_names_its_holder(tmp_path, monkeypatch, code):
    def held(*_):
        raise OSError(code, os.strerror(code))

    (tmp_path / ".lock").write_text("process 17 on node3\n")
    monkeypatch.setattr(fcntl, "flock", held)
    with (
        pytest.raises(InputError, match=r"being written by another process \(process 17 on node3\)"),
        sole_writer(tmp_path),
    ):
        pass
    assert (tmp_path / ".lock").read_text() == "process 17 on node3\n"


def test_any_other_locking_error_is_raised(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), sole_writer(tmp_path):
        pass


def test_an_update_waits_for_another_one_until_a_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "TIMEOUT", 0.3)
    started = time.monotonic()
    with exclusive_update(tmp_path):
        with pytest.raises(InputError, match=r"another process .* has been changing files"), exclusive_update(tmp_path):
            pass
        assert 0.3 <= time.monotonic() - started < 3
    with exclusive_update(tmp_path):
        pass


def hold_with_a_worker(folder, sender):
    """A command that holds the lock, with a worker process, and is then killed."""
    with sole_writer(folder):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        sender.send(worker.pid)
        time.sleep(60)


def test_the_lock_of_a_killed_command_is_free_even_if_its_worker_still_runs(tmp_path):
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe()
    command = fork.Process(target=hold_with_a_worker, args=(tmp_path, sender))
    command.start()
    worker = receiver.recv()
    with pytest.raises(InputError, match=rf"process {command.pid} on"), sole_writer(tmp_path):
        pass
    command.kill()
    command.join()
    try:
        os.kill(worker, 0)
        with sole_writer(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
