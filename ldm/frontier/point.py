"""One point of a frontier: its VAE, then its generator once for each seed, scored at every budget; and its result."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldm.demo.accuracy import attributes_of
from ldm.experiment import Experiment
from ldm.frontier.budget import generator_steps, with_equal_steps
from ldm.frontier.results import is_finished, result_file
from ldm.frontier.settings import SHARED, FrontierSettings
from ldm.frontier.sharing import PREPARED, image_vae_run, shared_stages, with_shared_stages
from ldm.study.plan import Run
from ldm.study.results import SCORES, scores, training
from ldm.study.runner import StageRunner
from odvae.cluster.settings import usable_cores
from odvae.running.distributed import TIMEOUT
from odvae.running.errors import InputError
from odvae.running.files import read_json, read_json_lines, read_object, write_json
from odvae.running.folder_lock import exclusive_update
from odvae.running.json_objects import JsonObject
from odvae.running.run_folder import code_version

Part = Literal["latents", "cost", "result"]
VAE_STAGES = ("train_vae", "evaluate_vae", "encode_latents")
SHARED_LOCK = ".stages.lock"
SAME_WORK = 0.02  # largest relative difference of the operations of two generators' steps
GENERATOR_STAGES = ("train_ldm", "sample_video", "evaluate_ldm")


@dataclass(frozen=True)
class PointRunner(StageRunner):
    """Runs one point after the other, each resumed where it was stopped."""

    config: Path
    settings: FrontierSettings
    overrides: tuple[str, ...]

    def run_point(self, name: str, until: Part = "result") -> Path:
        """Run all of a point that is not finished, up to a part of it; returns that part's file or folder.

        A point whose result is there, with all seeds and budgets, is finished, whether or not its working folder is.
        Raises OutOfTime at the deadline, and InputError, before any work, for a result that was made by other settings.
        """
        settings = self.settings
        if until == "result" and is_finished(settings, name):
            return result_file(settings, name)
        self._run_shared_stages(name)
        experiment = with_equal_steps(settings, name)
        self.execute(Run(name, with_shared_stages(settings, name, experiment), VAE_STAGES))
        if until == "latents":
            return settings.folder / name / "latents"
        self._measure_cost(name)
        if until == "cost":
            return settings.folder / name / "cost.json"
        cost = read_object(settings.folder / name / "cost.json").section("generator")
        speed = speed_for(settings, name, cost)
        work = cost.number("step_gflops")
        budgets = generator_steps(settings, name, {"steps_per_second": speed, "step_gflops": work})
        trained = [self._train_generator(name, seed, budgets) for seed in settings.points[name].seeds]
        return self._write_result(name, speed, phase_steps(experiment), [row for rows in trained for row in rows])

    def _run_shared_stages(self, name: str) -> None:
        """Make what the point shares with others, where it is not there yet."""
        words = [sys.executable, "tools/compression_frontier.py", str(self.config), *self.overrides, "--prepare"]
        folder = self.settings.folder / SHARED
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_update(folder, SHARED_LOCK, timeout=TIMEOUT.total_seconds()):  # points may run side by side
            self.once(folder / PREPARED / "done" / "prepare.json", words)
            if (run := image_vae_run(self.settings, name)) is not None:
                self.execute(run)

    def _train_generator(self, name: str, seed: int, budgets: dict[int, list[str]]) -> list[dict]:
        """Train the generator with one seed, stopping at each budget to sample and score; returns a row for each."""
        folder = self.settings.folder / name / f"seed_{seed}"
        run = f"{name}/seed_{seed}"
        experiment = with_shared_stages(self.settings, name, self.settings.experiment_of(name))
        changes, borrowed = {"run": str(folder), "seed": seed}, {"vae": name, "latents": name}
        rows = []
        for steps, meant in budgets.items():
            optimization = experiment.ldm.optimization.model_copy(update={"steps": steps})
            ldm = experiment.ldm.model_copy(update={"optimization": optimization})
            (folder / "experiment.yaml").unlink(missing_ok=True)  # of the budget before: only the steps are others
            self.execute(Run(run, experiment.model_copy(update={**changes, "ldm": ldm}), (), borrowed))
            row = folder / "scores" / f"{steps}.json"
            words = [sys.executable, "tools/run_stages.py", "--config", str(folder / "experiment.yaml")]
            for stage in GENERATOR_STAGES:
                words += ["--stage", stage]
            self.once(folder / "done" / f"{steps}_steps.json", words)
            if not row.is_file():
                row.parent.mkdir(exist_ok=True)
                write_json(row, {"seed": seed, "budgets": meant, **_generator_row(folder, steps)})
            rows.append({**read_json(row), "budgets": meant})
        return rows

    def _measure_cost(self, name: str) -> None:
        """Measure speed, memory and FLOPs of the point's models in a separate process."""
        words = [sys.executable, "tools/compression_frontier.py", str(self.config), *self.overrides, "--cost", name]
        self.once(self.settings.folder / name / "done" / "cost.json", words)

    def _write_result(self, name: str, speed: float, steps: dict[str, int], generators: list[dict]) -> Path:
        folder = self.settings.folder / name
        result: dict[str, Any] = {
            "point": name,
            "changes": list(self.settings.points[name].changes),
            "role": self.settings.points[name].role,
            "shared": self.settings.shared(),
            "vae": {**_vae_row(folder), "steps": steps},
            "cost": read_object(folder / "cost.json"),
            "budget_speed": {"of": self.settings.points[name].speed_of or name, "steps_per_second": speed},
            "generators": generators,
            "minutes": {
                "point": _minutes(folder),
                "shared": {
                    stage: _minutes(self.settings.folder / SHARED / stage)
                    for stage in shared_stages(self.settings, name)
                },
            },
            "machine": machine(),
            **code_version(),
        }
        path = result_file(self.settings, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        return path


def speed_for(settings: FrontierSettings, name: str, cost: JsonObject) -> float:
    """Steps a second that make a point's budgets in minutes: its own of `cost`, or those of the point in `speed_of`.

    Raises InputError where that point was not measured, or a step of its generator is not the same work.
    """
    other = settings.points[name].speed_of
    if other is None:
        return cost.number("steps_per_second")
    measured, result = settings.folder / other / "cost.json", result_file(settings, other)
    if measured.is_file():
        theirs = read_object(measured).section("generator")
    elif result.is_file():
        theirs = read_object(result).section("cost").section("generator")
    else:
        raise InputError(
            f"points.{name}.speed_of={other}: the speed of {other} is not measured yet; run first: "
            f"tools/compression_frontier.py CONFIG --point {other} --until cost"
        )
    ours_gflops, their_gflops = cost.number("step_gflops"), theirs.number("step_gflops")
    if abs(ours_gflops / their_gflops - 1) > SAME_WORK:
        raise InputError(
            f"points.{name}.speed_of={other}: a step of its generator costs {ours_gflops:.3f} GFLOP and one of {other} "
            f"{their_gflops:.3f}, which is not the same work (allowed: {SAME_WORK:.0%} difference)"
        )
    return theirs.number("steps_per_second")


def machine() -> str:
    """The processor and the number of its cores that this process may use."""
    cores = usable_cores()
    names = [
        line.partition(":")[2].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else [])
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{cores} {'core' if cores == 1 else 'cores'} of {name}"


def _vae_row(folder: Path) -> dict[str, Any]:
    """Reconstruction scores of a point's VAE, also of each clip, and what evaluate_vae measured of its latents."""
    part = read_object(folder / "report" / "report.json").section("reconstruction")
    quality = {name: part.number(name) for name in SCORES if part.has(name)}
    clips = [
        {key: row.number(name) for key, name in (("psnr", "psnr"), ("motion", "moving_psnr")) if row.has(name)}
        for row in read_json_lines(folder / "report" / "reconstructions.jsonl")
    ]
    measures = {name: part[name] for name in ("latents", "motion") if part.has(name)}
    return {**quality, "n": part.number("n"), "clips": clips, **measures}


def _generator_row(folder: Path, steps: int) -> dict[str, Any]:
    """Scores of a generator after `steps`, with the judge's verdict on the reconstructions, which bounds it."""
    report = read_object(folder / "report" / "report.json")
    trained = training(folder)
    ceiling = report["prompt_accuracy_reconstructed"]
    return {
        "steps": steps,
        "minutes": trained["minutes"],
        "held_out_loss": trained["held_out_loss"],
        **{key: value for key, value in scores(report).items() if key not in ("command", "commit")},
        "ceiling": None if ceiling is None else {key: ceiling[key] for key in attributes_of(ceiling)},
    }


def phase_steps(experiment: Experiment) -> dict[str, int]:
    """The steps of each phase of the VAE's training; 0 of one that it does not have."""
    phases = {"image_phase": experiment.vae.image_phase, "video_phase": experiment.vae.video_phase}
    return {name: 0 if phase is None else phase.steps for name, phase in phases.items()}


def _minutes(folder: Path) -> float:
    """Wall time of all commands of a point, or of a shared stage."""
    markers = (*folder.glob("done/*.json"), *folder.glob("seed_*/done/*.json"))
    return round(sum(read_object(marker).number("minutes") for marker in sorted(markers)), 2)
