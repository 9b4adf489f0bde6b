"""Print how long `make demo` will take on this machine, or the rest of it.

    python tools/demo_time.py [configs/demo.yaml]

Computed from the finished stages of the run or, if there are none, from a benchmark of about a second. Only for
configs with a reference timing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.demo.duration import REFERENCES, describe, finished_minutes, probe, seconds_left
from odvae.running.errors import readable_errors
from odvae.running.strict_yaml import read_yaml
from odvae.running.text import read_text_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/demo.yaml"))
    config = parser.parse_args().config
    reference = REFERENCES.get(config.stem)
    if reference is None:
        print(f"no reference timing for {config}: no estimate")
        return
    minutes = finished_minutes(Path(read_yaml(read_text_file(config, "config file"), str(config))["run"]))
    left = seconds_left(reference, minutes, None if minutes else probe())
    if left:
        print(f"{'left' if minutes else 'the whole'}: {describe(left)}", flush=True)


if __name__ == "__main__":
    with readable_errors():
        main()
