"""Runs a study's pipeline scripts, one process per stage, and resumes after any interruption."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from ldm.experiment import Experiment
from ldm.study.plan import IMAGE, Run, generator_run, vae_runs
from ldm.study.settings import StudySettings
from odvae.running.errors import InputError
from odvae.running.files import read_object, write_json, write_text
from odvae.running.resume_check import differing_keys, read_stage_record
from odvae.running.run_folder import code_version
from odvae.running.settings import load_settings

REPOSITORY = Path(__file__).resolve().parents[2]
GRACE = 120  # seconds that a stage has to save its checkpoint at the deadline


class OutOfTime(Exception):
    """The deadline has passed; everything finished is kept."""


@dataclass(frozen=True)
class StageRunner:
    """Runs pipeline scripts in processes, each once, until a deadline."""

    folder: Path
    processes: int
    deadline: float | None  # time.monotonic()

    def execute(self, run: Run) -> None:
        """Execute the run's scripts that have not finished yet."""
        folder = self.folder / run.name
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "experiment.yaml"
        record_experiment(config, run)
        for stage, lender in run.borrowed.items():
            link = folder / stage
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(self.folder / lender / stage, folder), target_is_directory=True)
        for script in run.scripts:
            words = [*self.launcher(), f"pipelines/{script}.py", "--config", str(config)]
            self.once(folder / "done" / f"{script}.json", words)

    def once(self, marker: Path, words: list[str]) -> None:
        """Run a command to its end, unless its marker file exists; the marker records command, commit and minutes.

        The minutes of earlier starts, which were stopped, count too: they are kept beside the marker until then.
        """
        if marker.is_file():
            return
        print(f"\n{shlex.join(words)}", flush=True)
        marker.parent.mkdir(parents=True, exist_ok=True)
        stopped = marker.with_suffix(".stopped")
        start, minutes = time.monotonic(), read_object(stopped).number("minutes") if stopped.is_file() else 0.0
        process = subprocess.Popen(words, cwd=REPOSITORY, env=environment())
        try:
            status = self.wait(process)
        finally:
            minutes = round(minutes + (time.monotonic() - start) / 60, 3)
            write_json(stopped, {"minutes": minutes})
        if status != 0:
            raise InputError(f"the study stopped: exit status {status} of: {shlex.join(words)}")
        write_json(marker, {"command": shlex.join(words), "minutes": minutes, **code_version()})
        stopped.unlink()

    def wait(self, process: subprocess.Popen) -> int:
        """The exit status. At the deadline, or when the study itself is stopped, the stage first saves and ends."""
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        try:
            return process.wait(left)
        except subprocess.TimeoutExpired:
            stop(process)
            raise OutOfTime from None
        except BaseException:  # Ctrl-C or SIGTERM
            stop(process)
            raise

    def launcher(self) -> list[str]:
        launch = ["accelerate", "launch", "--num_processes", str(self.processes)]
        return [sys.executable] if self.processes == 1 else launch


@dataclass(frozen=True)
class Runner(StageRunner):
    """Runs the stages of one study until a deadline."""

    config: Path
    settings: StudySettings
    overrides: tuple[str, ...]

    def run_all(self) -> None:
        """Execute all runs of the study in order, except what is finished. Raises OutOfTime at the deadline."""
        settings = self.settings
        for run in vae_runs(settings):
            self.execute(run)
            self.measure_cost(run.name)
        for generator, ldm in settings.generators.items():
            image = generator_run(settings, generator, IMAGE, "steps")
            ours = generator_run(settings, generator, settings.main_vae, "steps")
            for run in (image, ours):
                self.execute(run)
                self.measure_cost(run.name)
            steps = self.steps_in_equal_time(ldm.optimization.steps, image.name, ours.name)
            self.execute(generator_run(settings, generator, settings.main_vae, "time", steps))

    def steps_in_equal_time(self, steps: int, slow: str, fast: str) -> int:
        """Steps that the faster run takes in the slower one's time; computed once and stored, for restarts."""
        path = self.settings.folder / fast / "equal_time.json"
        if not path.is_file():
            minutes = [
                read_stage_record(self.settings.folder / name / "ldm/stage.json")["minutes"] for name in (slow, fast)
            ]
            write_json(path, {"steps": round(steps * minutes[0] / minutes[1]), "minutes": minutes})
        return int(read_object(path).number("steps"))

    def measure_cost(self, name: str) -> None:
        """Measure speed, memory and FLOPs of the run's model in a separate process."""
        words = [sys.executable, "tools/compression_study.py", str(self.config), *self.overrides, "--cost", name]
        self.once(self.settings.folder / name / "done" / "cost.json", words)


def stop(process: subprocess.Popen) -> None:
    """Make a stage save a checkpoint and end; kill it if it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


def record_experiment(path: Path, run: Run) -> None:
    """Write the run's whole experiment, so that its commands can also be run by hand.

    Raises InputError where the file has other settings; keys that it lacks (a file of an earlier version) count as
    their defaults.
    """
    now = run.experiment.model_dump(mode="json")
    if path.is_file():
        before = load_settings(Experiment, path).model_dump(mode="json")
        if changed := [f"  {k}: was {a!r}, now {b!r}" for k, (a, b) in differing_keys(before, now).items()]:
            raise InputError(
                f"{path.parent} was begun with other settings; choose another study folder (run=...):\n"
                + "\n".join(changed)
            )
    write_text(path, yaml.safe_dump(now, sort_keys=False))


def environment() -> dict[str, str]:
    """The environment in which scripts import this checkout's packages, wherever the study was started."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
