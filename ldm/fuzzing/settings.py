"""Settings of a fuzz run."""

from __future__ import annotations

from pydantic import Field

from odvae.cluster.settings import usable_cores
from odvae.running.settings import Settings


class FuzzSettings(Settings):
    seed: int = 0
    """Seed of the mutations; (seed, kind, number) determines an input."""
    count: int = Field(2000, ge=1)
    """Mutated inputs of all kinds together; kinds that are cheap to read get more of them."""
    first: int = Field(0, ge=0)
    """Number of each kind's first input: a run from there on continues an earlier one of the same seed."""
    minutes: float | None = Field(None, gt=0)
    """Stop after this time; null: when all inputs were read."""
    kinds: tuple[str, ...] = ()
    """Kinds of input; empty: all."""
    workers: int = Field(default_factory=usable_cores, ge=1)
    """Processes that read."""
    seconds_per_input: float = Field(20.0, gt=0)
    """An input that takes longer, twice in a row, counts as a hang."""
    memory_gib: float = Field(2.0, gt=0)
    """Memory that reading an input may need."""
    out: str = "runs/fuzz"
    """Folder for the inputs that were neither read nor refused by a clear error."""
    replay: str | None = None
    """Read only this file, which an earlier run put into its `out`, and show the traceback."""
