"""The compression frontier: rates, channels and regularizers of the VAE at equal compute. Run it again to resume.

python tools/compression_frontier.py configs/study/frontier_cpu.yaml [--point NAME ...] [--minutes 90] [key=value ...]
python tools/compression_frontier.py configs/study/frontier_cpu.yaml --until cost   # all speeds, before the trainings
python tools/compression_frontier.py configs/study/frontier_cpu.yaml --finish       # the page of all results so far
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import get_args

from ldm.arguments import CommandParser
from ldm.frontier.page import write_frontier
from ldm.frontier.plan import describe_plan, measured_flops_per_second
from ldm.frontier.point import Part, PointRunner, machine
from ldm.frontier.results import is_finished, result_file
from ldm.frontier.settings import FrontierSettings
from ldm.frontier.sharing import prepare
from ldm.study.costs import training_cost, vae_cost
from ldm.study.runner import OutOfTime
from odvae.running.distributed import join_ranks
from odvae.running.errors import InputError, readable_errors
from odvae.running.files import write_json
from odvae.running.settings import load_settings


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("config", type=Path, help="the frontier, e.g. configs/study/frontier_cpu.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--point", action="append", default=[], help="only this point; may be given several times")
    parser.add_argument("--until", choices=get_args(Part), default="result", help="the last part of each point to run")
    parser.add_argument("--finish", action="store_true", help="only write the page of the results that there are")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command resumes")
    parser.add_argument("--cost", metavar="POINT", help="only measure the cost of one point (part of the frontier)")
    parser.add_argument(
        "--prepare", action="store_true", help="only the videos and text encoder of all points (a part)"
    )
    options = parser.parse()
    settings = load_settings(FrontierSettings, options.config, options.overrides)
    if unknown := sorted({*options.point, *filter(None, [options.cost])} - settings.points.keys()):
        raise InputError(f"there is no point {unknown[0]}; {options.config} has {', '.join(settings.points)}")
    if options.prepare or options.cost:
        join_ranks()
        if options.prepare:
            prepare(settings)
        if options.cost:
            measure_cost(settings, options.cost)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running stage is stopped too
    finished = options.finish or run(settings, options)
    if options.finish or (options.until == "result" and (finished or any_result(settings))):
        print(f"\noutput: {write_frontier(settings)}")


def any_result(settings: FrontierSettings) -> bool:
    return any(result_file(settings, name).is_file() for name in settings.points)


def run(settings: FrontierSettings, options: argparse.Namespace) -> bool:
    """Run the chosen points, or all without a result, except what is finished. False: time was up before the end."""
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    runner = PointRunner(settings.folder, 1, deadline, options.config, settings, tuple(options.overrides))
    names = options.point or list(settings.points)
    left = [name for name in names if not is_finished(settings, name)]
    if left:
        speed = measured_flops_per_second(settings, join_ranks().device)
        print(describe_plan(settings, left, len(names), speed), flush=True)
    try:
        for name in options.point or left:
            print(f"\n{options.until}: {runner.run_point(name, options.until)}", flush=True)
    except OutOfTime:
        print("\ntime is up; run the same command again to resume")
        return False
    return True


def measure_cost(settings: FrontierSettings, name: str) -> None:
    """Write `cost.json` of a point: of its VAE, and of the generator on its latents."""
    folder, device, experiment = settings.folder / name, join_ranks().device, settings.experiment_of(name)
    write_json(
        folder / "cost.json",
        {
            "vae": vae_cost(folder / "vae", experiment.data, device),
            "generator": training_cost(experiment.ldm, folder / "latents", settings.measured_steps, 0, device),
            "machine": machine(),
        },
    )


if __name__ == "__main__":
    with readable_errors():
        main()
