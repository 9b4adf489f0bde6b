"""What a kind of input is: its valid files, how they are mutated, and what of the pipeline reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ldm.fuzzing.mutations import Mutation


class NeighborLost(Exception):
    """A valid file next to a mutated one was not read, or was read as something else."""


@dataclass(frozen=True)
class Valid:
    """A valid file: its name, its bytes, and what may be done to them."""

    name: str
    data: bytes
    mutations: Sequence[Mutation]


@dataclass(frozen=True)
class Kind:
    """`make(folder)` gives the valid files; it may write further files that `read` needs into the folder.

    `read(context, name, data, folder, rng)` has the pipeline read a mutated file, from `folder`, which is empty and
    where it may write. It raises InputError where the pipeline refuses the file, NeighborLost where that costs more
    than the file, and passes on anything else. `context` is the folder that `make` was given; `rng` chooses among the
    ways in which such a file is read.
    """

    name: str
    make: Callable[[Path], Sequence[Valid]]
    read: Callable[[Path, str, bytes, Path, Random], None]
    share: int = 10
    """How many of a run's inputs are of this kind, relative to the other kinds."""
    guarded: bool = False
    """Whether the pipeline reads it in guarded workers, where want of memory costs only the file."""
