"""Plan an experiment before it is launched: memory, FLOPs, least time and storage, on any machine.

    python tools/plan.py configs/paper/latte_ucf101.yaml --device h100 --count 8 [section.key=value ...]
    python tools/plan.py configs/t2v_8gpu.yaml --device h200 --count 64 --sharding fsdp2 --clips 10000000
    python tools/plan.py --all --write                 # renew the plan in the header of every config

Each step runs once on fake CUDA tensors (tools/rehearse.py); docs/cluster.md says how to read the plan. Devices are in
odvae/training/devices.yaml. Exit status 1: something does not fit; the smallest change that helps is printed.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.arguments import CommandParser
from ldm.experiment import CONFIGS
from odvae.running.errors import InputError, readable_errors
from odvae.running.files import write_text
from odvae.running.settings import find_config

if TYPE_CHECKING:  # slow to import
    from ldm.planning.rehearsal import Rehearsed


@readable_errors()
def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("config", nargs="?", help="a YAML file, or the name of a config of this project")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace settings of the file")
    parser.add_argument("--device", help="kind of GPU (default: that of the header's plan, else h100)")
    parser.add_argument("--count", type=int, help="how many of them (default: as in the header's plan, else 1)")
    parser.add_argument("--sharding", choices=["ddp", "fsdp2"], help="default: that of the header's commands, else ddp")
    parser.add_argument("--clips", type=int, help="clips that are encoded, for the time and the storage of all")
    parser.add_argument("--only", default="", help="only steps whose name starts with this (train_vae, encode, ...)")
    parser.add_argument("--all", action="store_true", help="every config of the project")
    parser.add_argument("--write", action="store_true", help="write the plan's line into the header")
    parser.add_argument("--check", action="store_true", help="fail where the header has another plan")
    options = parser.parse()
    if options.all == (options.config is not None):
        raise InputError("give one config to plan, or --all")
    if (options.write or options.check) and (options.only or options.overrides):
        raise InputError("--write and --check are for whole configs as they are: without --only and settings")
    from ldm.planning.shipped import shipped_experiments

    configs = shipped_experiments() if options.all else [find_config(options.config, CONFIGS)]
    warnings.simplefilter("ignore")  # of libraries, about shapes that nothing was computed for
    known: dict[str, Rehearsed] = {}
    results = [plan_config(config, options, known) for config in configs]
    sys.exit(0 if all(results) else 1)


def plan_config(config: Path, options: argparse.Namespace, known: dict[str, Rehearsed]) -> bool:
    """Plan one config and print the plan; returns whether it fits and, with --check, whether the header says so.

    `known` has the steps that were rehearsed for earlier configs.
    """
    from ldm.planning.devices import find_device
    from ldm.planning.planner import make_plan
    from ldm.planning.shipped import header_overrides, header_plan, header_sharding
    from ldm.planning.summary import describe, one_line

    name, count = header_plan(config)
    name, count = options.device or name, options.count or count
    sharding = options.sharding or header_sharding(config)
    device = find_device(name, count)
    overrides = [*header_overrides(config), *options.overrides]
    plan = make_plan(config, overrides, device, count, sharding, options.only, known)
    print(f"{config} {' '.join(overrides)}".rstrip() + f": {count} x {name}, {sharding}")
    print(describe(plan, options.clips), flush=True)
    line = one_line(plan, name, count)
    if options.write:
        write_plan(config, line)
    if options.check and line not in config.read_text().splitlines():
        print(f"{config}: its header's plan is another; renew it: python tools/plan.py {config} --write")
        return False
    return plan.fits or options.check


def write_plan(config: Path, line: str) -> None:
    """Replace the plan in a config's header, or add it at the header's end."""
    from ldm.planning.shipped import PLAN

    text = config.read_text()
    header = re.match(r"(#.*\n)*", text)
    assert header is not None  # it matches anything
    lines = [other for other in header[0].splitlines() if not other.startswith(PLAN)]
    write_text(config, "\n".join([*lines, line]) + "\n" + text[header.end() :])


if __name__ == "__main__":
    main()
