"""Progress bars (tqdm) on the main process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from accelerate import PartialState
from tqdm import tqdm

T = TypeVar("T")


def progress_bar(description: str, done: int, total: int, unit: str = "step", unit_scale: bool = False) -> tqdm:
    """A progress bar with rate and remaining time; a line every ten seconds if the output is not a terminal."""
    return tqdm(
        desc=description,
        initial=done,
        total=total,
        unit=unit,
        unit_scale=unit_scale,
        disable=not PartialState().is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
    )


def progress_over(items: Sequence[T], description: str, unit: str = "clip") -> Iterator[T]:
    """Yields the items, with a progress bar on the main process."""
    with progress_bar(description, 0, len(items), unit=unit) as bar:
        for item in items:
            yield item
            bar.update()
