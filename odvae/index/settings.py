"""Settings of the command that indexes a folder of shards."""

from __future__ import annotations

import os

from pydantic import Field, field_validator, model_validator

from odvae.cluster.parts import Part
from odvae.running.settings import Settings


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class IndexingSettings(Settings):
    part: str | None = None
    """i/n: index one of n shares of the shards, on any machine and in any order; then the same command with
    finish=true. null: all of them."""
    finish: bool = False
    """Merge the indexes of all shards, which the parts have made. Those that are missing are an error."""
    workers: int = Field(default_factory=_cores, ge=0)
    """Processes that decode videos whose KEY.json is not from make_shards; 0: without time and memory limits."""
    decode_seconds: float = Field(60.0, gt=0)
    """A video that takes longer to decode cannot be used. As data.decode_seconds of the trainings that follow, or such
    videos are decoded again there."""
    decode_gib: float = Field(4.0, gt=0)
    """A video that needs more memory to decode cannot be used. As data.decode_gib."""

    @field_validator("part")
    @classmethod
    def _is_part(cls, text: str | None) -> str | None:
        return None if text is None else str(Part.parse(text))

    @model_validator(mode="after")
    def _one_of_both(self) -> IndexingSettings:
        if self.finish and self.part is not None:
            raise ValueError("part=i/n indexes a part, finish=true merges all of them: give one of the two")
        return self
