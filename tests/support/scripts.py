"""The project's scripts in processes of their own, as users start them, but without the seconds that importing takes.

The processes are forked from one server that has imported what the scripts import and has computed nothing. The rest
is as it would be: the script's file is run, with its own arguments, environment, output, process group, exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ports import free_port
from small import REPOSITORY

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
TIMEOUT = 240  # seconds
# What the commands import once they have read their arguments.
STAGES = [
    "ldm.open_videos", "odvae.train", "ldm.encode", "ldm.train", "ldm.sample", "odvae.evaluate", "ldm.evaluate",
    "ldm.export", "odvae.packing.packing", "ldm.encoding.verify",
]  # fmt: skip

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["__main__", *STAGES])
atexit.register(multiprocessing.forkserver._forkserver._stop)  # type: ignore[attr-defined]  # waits for it, so that `time pytest` counts its work


class Script:
    """A started script: `words` are its file and its arguments, as on the command line; it runs in the checkout."""

    def __init__(self, words: Sequence[object], *, file_size: int | None = None, **environment: Any) -> None:
        self.words, self.folder = [str(word) for word in words], tempfile.TemporaryDirectory(prefix="script")
        outputs = [str(Path(self.folder.name) / name) for name in ("stdout", "stderr")]
        for output in outputs:
            Path(output).touch()
        arguments = (self.words, {**ENVIRONMENT, **environment}, outputs, file_size)
        self.process = _SERVER.Process(target=_run, args=arguments)
        self.process.start()

    @property
    def stdout(self) -> str:
        return (Path(self.folder.name) / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (Path(self.folder.name) / "stderr").read_text()

    def wait(self) -> int:
        """The exit status; negative where a signal ended it."""
        self.process.join(TIMEOUT)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"{self.words} did not end in {TIMEOUT} s:\n{self.stderr[-3000:]}")
        return self.process.exitcode

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so while the script works."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert self.process.exitcode is None, self.stderr[-3000:]
            assert time.monotonic() < deadline, self.stderr[-3000:]
            time.sleep(0.002)

    def leads_its_group(self) -> bool:
        """Whether signals to the process group whose number is its own reach it, as they do soon after its start."""
        assert self.process.pid is not None  # it was started
        return os.getpgid(self.process.pid) == self.process.pid

    def kill(self) -> None:
        """kill -9, with all the processes it has started."""
        assert self.process.pid is not None  # it was started
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself, a moment before
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # where it does not lead its group yet
        self.process.join()


def _keep_to_one_core() -> None:
    """Then a script computes on one thread: networks as small as those of tests are slower on two, and burn both."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})


def _run(words: list[str], environment: dict[str, str], outputs: list[str], file_size: int | None) -> None:
    os.setsid()
    _keep_to_one_core()
    os.chdir(REPOSITORY)
    os.environ.update(environment)
    for stream, output in zip((sys.stdout, sys.stderr), outputs, strict=True):
        stream.flush()
        with open(output, "ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def succeed(*words: str, **options) -> str:
    """What a script prints that ends well."""
    script = Script(words, **options)
    status = script.wait()
    assert status == 0, (status, script.stderr[-3000:])
    return script.stdout


def fail(*words: str, status: int = 1, **options) -> str:
    """What a script says that ends with an error for its user: one clear line, no traceback."""
    script = Script(words, **options)
    found = script.wait()
    assert found == status, (found, script.stderr[-3000:])
    assert "Traceback" not in script.stderr
    return script.stderr.strip()


def start_on_ranks(count: int, *words: str) -> list[Script]:
    """Start a script as so many CPU ranks, with the variables that torchrun gives each of its processes."""
    size: dict[str, Any] = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    together = {**size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    return [Script(words, RANK=str(rank), LOCAL_RANK=str(rank), **together) for rank in range(count)]


def on_ranks(count: int, *words: str) -> None:
    """Run a script as so many CPU ranks, all of which must end well."""
    for rank in start_on_ranks(count, *words):
        status = rank.wait()
        assert status == 0, (status, rank.stderr[-3000:])


def fresh(*words: str, **environment: str) -> str:
    """What a command prints that ends well, from an interpreter that has imported nothing."""
    environment = {**os.environ, **ENVIRONMENT, **environment}
    options: dict[str, Any] = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True}
    result = subprocess.run(words, preexec_fn=_keep_to_one_core, check=False, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
