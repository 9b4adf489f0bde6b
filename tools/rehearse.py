"""Rehearse an experiment for a GPU on any machine: every stage's real step once, on fake CUDA tensors.

    python tools/rehearse.py configs/demo.yaml [section.key=value ...]
    python tools/rehearse.py configs/t2v_8gpu.yaml --only train_ldm
    python tools/rehearse.py --all                         # every config of the project
    python tools/rehearse.py --all --quick                 # of every config training and encoding, nothing compiled

The code runs on shapes, dtypes and devices only, in bf16 where the config says so: nothing is computed, no GPU, weights
or data are needed. It fails, with file and line, where a tensor is on the wrong device and where the CPU and the GPU
would wait for each other, and where the plan in a config's header (tools/plan.py) has other memory. Places that may
wait are printed with the reason (`ldm.planning.host_syncs.EXCEPTIONS`).
Where a training has compile=true, torch.compile's front end also goes over its blocks for all buckets, in training,
validation and sampling: it fails where code is left uncompiled (a graph break), and where a known shape is compiled
again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.arguments import CommandParser
from ldm.experiment import CONFIGS, Experiment
from odvae.running.errors import InputError, readable_errors
from odvae.running.settings import find_config, load_settings

if TYPE_CHECKING:  # slow to import
    from ldm.planning.compilation import CompiledTraining
    from ldm.planning.host_syncs import Wait
    from ldm.planning.rehearsal import Rehearsed, Stage


@readable_errors()
def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("config", nargs="?", help="a YAML file, or the name of a config of this project")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace settings of the file")
    parser.add_argument("--all", action="store_true", help="rehearse every config of the project")
    parser.add_argument("--only", default="", help="only steps whose name starts with this (train_vae, encode, ...)")
    parser.add_argument("--quick", action="store_true", help="only training steps and encoding, and nothing compiled")
    options = parser.parse()
    if options.all == (options.config is not None):
        raise InputError("give one config to rehearse, or --all")
    from ldm.planning.shipped import header_overrides, shipped_experiments

    configs = shipped_experiments() if options.all else [find_config(options.config, CONFIGS)]
    failed = 0
    done: dict[str, Rehearsed] = {}
    warnings.simplefilter("ignore")  # of libraries, about shapes that nothing was computed for
    for config in configs:
        overrides = [*header_overrides(config), *options.overrides]
        failed += rehearse_config(config, overrides, options.only, done, options.quick)
        if not options.only and not options.overrides:
            failed += check_header(config, overrides, done)
    sys.exit(1 if failed else 0)


def rehearse_config(config: Path, overrides: Sequence[str], only: str, done: dict[str, Rehearsed], quick: bool) -> int:
    """Rehearse one config and print what was found; returns how many of its steps failed.

    `done` has the steps that were rehearsed, by `step_key`; they are not repeated, and new ones are added. With
    `quick`, sampling, decoding and scoring are left out, and blocks are not compiled.
    """
    from ldm.planning.compilation import compiled_trainings
    from ldm.planning.host_syncs import RehearsalError
    from ldm.planning.rehearsal import stages_of
    from ldm.planning.repeated import step_key

    experiment = load_settings(Experiment, config, overrides)
    stages = [stage for stage in stages_of(experiment) if stage.name.startswith(only)]
    if not stages:
        raise InputError(f"{config} has no step whose name starts with {only!r}")
    print(f"{config} {' '.join(overrides)}".rstrip(), flush=True)
    failed, reasons = 0, {}
    for stage in stages:
        if quick and not (stage.trains or stage.name.startswith("encode")):
            continue
        key = step_key(experiment, stage)
        if key in done:
            print(f"  {stage.name}: as above", flush=True)
            continue
        try:
            done[key] = rehearse_step(stage, reasons)
        except InputError as error:  # fine-tuning, and text encoders of unknown size
            print(f"  {stage.name}: not rehearsed: {error}", flush=True)
        except RehearsalError as error:
            print(f"  {stage.name}: FAILED\n    {error}", flush=True)
            failed += 1
    for training in () if quick else compiled_trainings(experiment):
        if training.name.startswith(only):
            failed += compile_training(training)
    for wait in sorted(reasons):
        print(f"  may wait: {wait.where}: {wait.what}: {wait.reason}")
    return failed


def check_header(config: Path, overrides: Sequence[str], done: dict[str, Rehearsed]) -> int:
    """Compare the plan in a config's header with the stages all of whose steps are in `done`, and print what differs;
    returns how many stages do."""
    from ldm.planning.rehearsal import stages_of
    from ldm.planning.repeated import step_key
    from ldm.planning.shipped import PLAN, header_of
    from ldm.planning.summary import header_differences, stage_of

    if not any(line.startswith(PLAN) for line in header_of(config)):
        return 0
    experiment = load_settings(Experiment, config, overrides)
    steps = {stage.name: done.get(step_key(experiment, stage)) for stage in stages_of(experiment)}
    unknown = {stage_of(name) for name, rehearsed in steps.items() if rehearsed is None}
    known = {name: one for name, one in steps.items() if one is not None and stage_of(name) not in unknown}
    differences = header_differences(config, known)
    for line in differences:
        print(f"  header: FAILED\n    {line}", flush=True)
    return len(differences)


def rehearse_step(stage: Stage, reasons: dict[Wait, str | None]) -> Rehearsed:
    """Rehearse one step and print what it takes; adds the waits that it may cause to `reasons`."""
    from ldm.planning.rehearsal import rehearse

    rehearsed = rehearse(stage)
    waits = sum(rehearsed.waits.values())
    reasons |= {wait: wait.reason for wait in rehearsed.waits}
    allowed = f", {waits} listed waits" if waits else ""
    print(
        f"  {stage.name}: {rehearsed.peak / 2**30:.2f} GiB, {rehearsed.costs.flops / 1e12:.3g} TFLOP{allowed}",
        flush=True,
    )
    return rehearsed


def compile_training(training: CompiledTraining) -> bool:
    """Compile a training's blocks for all of its shapes; returns whether that failed."""
    from ldm.planning.compilation import count_graphs
    from ldm.planning.host_syncs import RehearsalError

    try:
        graphs = count_graphs(training)
    except RehearsalError as error:
        print(f"  {training.name}, compiled: FAILED\n    {error}", flush=True)
        return True
    print(f"  {training.name}, compiled: {graphs} graphs for {len(training.calls)} shapes, no breaks", flush=True)
    return False


if __name__ == "__main__":
    main()
