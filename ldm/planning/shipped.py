"""The configs that come with the project, with the settings that the commands in their headers give."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Literal

from ldm.experiment import CONFIGS

Sharding = Literal["ddp", "fsdp2"]

PLAN = "# plan: "


def shipped_experiments() -> list[Path]:
    """The YAML files that are experiments: not those of studies and of accelerate, Ray and SLURM."""
    others = {"accelerate", "ray", "slurm", "study"}
    return sorted(path for path in CONFIGS.rglob("*.yaml") if not others & set(path.relative_to(CONFIGS).parts))


def header_of(config: Path) -> list[str]:
    """The comment lines at the beginning of a config."""
    return [line for line in re.match(r"(#.*\n)*", config.read_text())[0].splitlines()]  # type: ignore[index]


def header_overrides(config: Path) -> list[str]:
    """The settings that the header's commands give besides the config; a name in capitals stands for the user's own."""
    found: dict[str, str] = {}
    for line in header_of(config):
        words = shlex.split(line.removeprefix("# "), posix=False) if "pipelines/" in line else []
        for word in words:
            key, given, value = word.partition("=")
            if given and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key):
                found[key] = value
    return [f"{key}={value}" for key, value in found.items()]


def header_plan(config: Path) -> tuple[str, int]:
    """Device and count of the header's plan; without one, an H100."""
    for line in header_of(config):
        if found := re.match(rf"{PLAN}(\d+) x ([a-z0-9-]+):", line):
            return found[2], int(found[1])
    return "h100", 1


def header_sharding(config: Path) -> Sharding:
    """How the header's commands divide a training over GPUs."""
    return "fsdp2" if any("accelerate/fsdp2.yaml" in line for line in header_of(config)) else "ddp"
