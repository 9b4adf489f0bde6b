"""What settings of commands have in common whose work is divided, between machines or between processes."""

from __future__ import annotations

import os
from typing import Any

from pydantic import field_validator, model_validator

from odvae.cluster.parts import Part
from odvae.running.settings import Settings


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PartSettings(Settings):
    """Settings of a command that does all of its work, or one of n parts of it, or finishes what the parts have done.

    Classes that inherit from it say in their own words what `part` and `finish` do.
    """

    part: str | None = None
    """i/n: one of n parts of the work."""
    finish: bool = False
    """Finish what all parts have done."""

    @field_validator("part")
    @classmethod
    def _is_part(cls, text: str | None) -> str | None:
        return None if text is None else str(Part.parse(text))

    @model_validator(mode="after")
    def _one_of_both(self) -> Any:
        if self.part is not None and self.finish:
            raise ValueError(f"part={self.part} and finish=true: first run all parts, then finish=true without part")
        return self

    @property
    def chosen_part(self) -> Part | None:
        """The part to do; None: all of the work."""
        return None if self.part is None else Part.parse(self.part)
