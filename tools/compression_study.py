"""The compression study: train VAEs and generators, compare at equal budget, write one page. Run it again to resume.

python tools/compression_study.py configs/study/cpu.yaml [--minutes 9] [key=value ...]
"""

import signal
import sys
import time
from pathlib import Path

from ldm.arguments import CommandParser
from ldm.study.costs import training_cost, vae_cost
from ldm.study.page import write_study
from ldm.study.results import collect
from ldm.study.runner import OutOfTime, Runner
from ldm.study.settings import StudySettings
from odvae.running.distributed import join_ranks
from odvae.running.errors import InputError, readable_errors
from odvae.running.files import write_json
from odvae.running.settings import load_settings


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("config", type=Path, help="the study, e.g. configs/study/cpu.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command resumes")
    parser.add_argument("--cost", metavar="RUN", help="only measure the cost of one run (part of the study)")
    options = parser.parse()
    settings = load_settings(StudySettings, options.config, options.overrides)
    if options.cost:
        measure_cost(settings, options.cost)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running stage is stopped too
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    overrides = tuple(options.overrides)
    runner = Runner(settings.folder, settings.processes, deadline, options.config, settings, overrides)
    try:
        runner.run_all()
    except OutOfTime:
        print("\ntime is up; run the same command again to resume")
    print(f"\noutput: {write_study(settings, collect(settings))}")


def measure_cost(settings: StudySettings, name: str) -> None:
    """Write `cost.json` of a run: of its generator where it trains one, else of its VAE."""
    folder, device = settings.folder / name, join_ranks().device
    generator = name.partition("_on_")[0]
    if not folder.is_dir():
        raise InputError(f"--cost {name}: {settings.folder} has no such run")
    if generator in settings.generators:
        ldm, seed = settings.generators[generator], settings.experiment.seed
        cost = training_cost(ldm, folder / "latents", settings.measured_steps, seed, device)
    else:
        cost = vae_cost(folder / "vae", settings.experiment.data, device)
    write_json(folder / "cost.json", cost)


if __name__ == "__main__":
    with readable_errors():
        main()
