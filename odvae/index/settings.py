"""Settings of the command that indexes a folder of shards."""

from __future__ import annotations

from pydantic import Field

from odvae.cluster.settings import PartSettings, usable_cores


class IndexingSettings(PartSettings):
    part: str | None = None
    """i/n: index one of n shares of the shards, on any machine and in any order; then the same command with
    finish=true. null: all of them."""
    finish: bool = False
    """Merge the indexes of all shards, which the parts have made. Those that are missing are an error."""
    workers: int = Field(default_factory=usable_cores, ge=0)
    """Processes that decode videos whose KEY.json is not from make_shards; 0: without time and memory limits."""
    decode_seconds: float = Field(60.0, gt=0)
    """A video that takes longer to decode cannot be used. As data.decode_seconds of the trainings that follow, or such
    videos are decoded again there."""
    decode_gib: float = Field(4.0, gt=0)
    """A video that needs more memory to decode cannot be used. As data.decode_gib."""
