"""Command lines of the commands: as scripts of a checkout, installed console commands, or modules."""

from __future__ import annotations

import sys
from pathlib import Path

# The console command of each module in ldm/commands (pyproject.toml has the same list).
CONSOLE_COMMANDS = {
    "make_shards": "odvae-make-shards",
    "train_vae": "odvae-train-vae",
    "encode_latents": "odvae-encode",
    "train_ldm": "odvae-train-ldm",
    "sample_video": "odvae-sample",
    "evaluate_vae": "odvae-evaluate-vae",
    "evaluate_ldm": "odvae-evaluate-ldm",
    "export_pipeline": "odvae-export",
}

_IS_CHECKOUT = (Path(__file__).resolve().parents[2] / "pipelines").is_dir()


def install_extra(name: str) -> str:
    """The command that installs an optional part, for messages: of this checkout, with the versions that it is tested
    with, or of the installed package."""
    return f"pip install -c constraints.txt -e '.[{name}]'" if _IS_CHECKOUT else f"pip install 'odvae[{name}]'"


def with_config(name: str, more: str = "") -> str:
    """The command line of a command that reads a config, for messages; `more` says what else to give or not to give."""
    return f"{command_line(name)} (with this experiment's --config{more})"


def command_line(name: str) -> str:
    """The command line of a command, for messages, in the form in which the current command was started.

    In any other program it is the script in a checkout, otherwise the console command.
    """
    started = Path(sys.argv[0]) if sys.argv else Path()
    launch = "python" if name == "make_shards" else "accelerate launch"
    if started.parent.name == "commands":
        return f"{launch} -m ldm.commands.{name}"
    if started.name in CONSOLE_COMMANDS.values() or not _IS_CHECKOUT:
        return CONSOLE_COMMANDS[name]
    return f"{launch} {'tools' if name == 'make_shards' else 'pipelines'}/{name}.py"
