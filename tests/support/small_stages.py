"""Stages with a few settings, some of which may change on resume."""

import json
from typing import Annotated

from odvae.running.resume_check import MayChange
from odvae.running.settings import Settings
from odvae.running.stage import Stage


class Part(Settings):
    width: int = 1
    every: Annotated[int, MayChange] = 1


class Other(Settings):
    every: int = 1


class Chosen(Settings):
    steps: Annotated[int, MayChange] = 10
    learning_rate: float = 0.1
    limit: Annotated[int, MayChange] | None = None
    optional: Part | None = Part()
    either: Part | Other = Other()
    several: tuple[Part, ...] = (Part(), Part(width=2))


def run(folder, chosen=None, **sections):
    with Stage(folder, {"seed": 0, "chosen": chosen or Chosen(), **sections}) as stage:
        return stage.finished


def record(folder):
    return json.loads((folder / "stage.json").read_text())
