"""How each command is started: as a script of a checkout, as an installed console command, or as a module."""

from __future__ import annotations

import sys
from pathlib import Path

# The installed command of each module of ldm/commands (pyproject.toml has the same list).
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

_SCRIPTS_ARE_HERE = (Path(__file__).resolve().parents[2] / "pipelines").is_dir()


def command_line(name: str) -> str:
    """The words that start a command in the way the running one was started, for messages that say what to run next.

    A program that is none of the commands gets the scripts where it runs from a checkout, else the console commands.
    """
    started = Path(sys.argv[0]) if sys.argv else Path()
    launch = "python" if name == "make_shards" else "accelerate launch"
    if started.parent.name == "commands":
        return f"{launch} -m ldm.commands.{name}"
    if started.name in CONSOLE_COMMANDS.values() or not _SCRIPTS_ARE_HERE:
        return CONSOLE_COMMANDS[name]
    return f"{launch} {'tools' if name == 'make_shards' else 'pipelines'}/{name}.py"
