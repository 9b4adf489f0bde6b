"""Feed mutated files of every kind to the functions that read them: each must be read, or refused by a clear error.

    python tools/fuzz_inputs.py [key=value ...]

Videos, images, shards, caption tables, configs, latents, checkpoints: small valid ones are made, mutated, and read in
guarded worker processes. Anything but success and InputError escapes, and so does a hang, want of memory, a worker's
death, and a healthy file that is lost beside a mutated one. What escapes is printed, and its input kept:

    python tools/fuzz_inputs.py replay=runs/fuzz/KIND-SEED-NUMBER-NAME

Exit status 0: none did. 1: some did.
"""

from __future__ import annotations

import sys
import time

from ldm.arguments import CommandParser, settings_help
from ldm.fuzzing.kinds import choose_kinds
from ldm.fuzzing.runner import fuzz, replay, table
from ldm.fuzzing.settings import FuzzSettings
from odvae.running.errors import readable_errors
from odvae.running.settings import make_settings


def main() -> None:
    parser = CommandParser(
        __doc__,
        epilog=f"settings (key=value):\n{settings_help(FuzzSettings)}",
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse()
    settings = make_settings(FuzzSettings, {}, options.settings, "tools/fuzz_inputs.py")
    kinds = choose_kinds(settings.kinds)
    if settings.replay is not None:
        outcome = replay(kinds, settings)
        print(outcome.result, outcome.what, outcome.details, sep="\n")
        sys.exit(0 if outcome.result in ("read", "refused") else 1)
    begin = time.monotonic()
    counts = fuzz(kinds, settings)
    print(table(counts))
    print(f"seed {settings.seed}, {time.monotonic() - begin:.0f} s")
    sys.exit(1 if any(count.results.keys() - {"read", "refused"} for count in counts.values()) else 0)


if __name__ == "__main__":
    with readable_errors():
        main()
