"""Run all stages of an experiment, one after the other, and say how long the rest will take.

    python tools/run_stages.py [--config configs/demo.yaml] [section.key=value ...] [--stage train_ldm ...]

The same as the commands in pipelines/ by hand, which it prints. It imports the libraries once: each stage is a process
forked from this one, which saves the start of Python and torch. Finished stages are skipped, unfinished ones resumed.
It ends at the first stage that fails, with its exit status. One process a stage: on several GPUs, start the stages by
accelerate launch. Estimates are for configs whose time was measured (`ldm.demo.duration.REFERENCES`).
"""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.arguments import CommandParser, parse_command_line
from ldm.demo.duration import REFERENCES, describe, finished_minutes, probe, seconds_left
from ldm.experiment import DEFAULT_CONFIG, Experiment
from odvae.running.errors import readable_errors

STAGES = ("train_vae", "encode_latents", "train_ldm", "sample_video", "evaluate_vae", "evaluate_ldm")

# What the stages import. Nothing in them computes or starts a thread on import, so that forking afterwards is safe.
LIBRARIES = (
    "odvae.train",
    "odvae.evaluate",
    "ldm.open_videos",
    "ldm.encode",
    "ldm.train",
    "ldm.sample",
    "ldm.evaluate",
)

# Signals to this process that are passed on to the stage, which ends by them as it does alone.
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)

_PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"


@readable_errors()
def main() -> None:
    extra = CommandParser(add_help=False)
    extra.add_argument("--stage", action="append", choices=STAGES, help="only this one; may be given several times")
    experiment, options = parse_command_line(Experiment, __doc__ or "", DEFAULT_CONFIG, extra)
    stages = options.stage or STAGES
    given = [*(["--config", str(options.config)] if options.config != DEFAULT_CONFIG else []), *options.overrides]
    for name in LIBRARIES:
        importlib.import_module(name)
    for stage in stages:
        if stage != stages[-1]:
            in_own_process(lambda: print_time_left(options.config.stem, Path(experiment.run)))
        arguments = [f"pipelines/{stage}.py", *given]
        print(f"$ python {shlex.join(arguments)}", flush=True)
        status = in_own_process(functools.partial(run_stage, stage, arguments))
        if status:
            sys.exit(128 - status if status < 0 else status)


def run_stage(stage: str, arguments: list[str]) -> None:
    """What `python pipelines/STAGE.py ...` does."""
    sys.argv = arguments
    runpy.run_path(str(_PIPELINES / f"{stage}.py"), run_name="__main__")


def print_time_left(config: str, run: Path) -> None:
    """The remaining time, from the finished stages or, if there are none, from a benchmark of about a second."""
    reference = REFERENCES.get(config)
    if reference is None:
        return
    minutes = finished_minutes(run)
    left = seconds_left(reference, minutes, None if minutes else probe())
    if left:
        print(f"{'left' if minutes else 'the whole'}: {describe(left)}", flush=True)


def in_own_process(work: Callable[[], Any]) -> int:
    """Do the work in a process forked from this one; returns its exit status, negative for the signal that ended it."""
    sys.stdout.flush()
    process = os.fork()
    if not process:
        work()
        sys.exit()
    before = {number: signal.signal(number, lambda number, _: os.kill(process, number)) for number in _PASSED_ON}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
