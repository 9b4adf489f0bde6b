"""A chosen subset of the rows of an index, in an eighth of a byte a row, with constant time for the i-th of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

# Rows whose chosen ones are counted together; the i-th chosen row is searched within one such block.
_BLOCK = 1024


class ChosenRows(Sequence[int], ABC):
    """Numbers of rows, ascending, each computed when it is asked for."""

    @abstractmethod
    def at(self, position: int) -> int:
        """The number at a position from 0 to before the length."""

    @abstractmethod
    def between(self, first: int, end: int) -> ChosenRows:
        """Those of the rows from `first` to before `end`."""

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of {len(self)} chosen ones")
        return self.at(position)


class Selection(ChosenRows):
    """The numbers of the chosen rows, ascending. `masks` are bools, in pieces of any length, of all rows in order."""

    def __init__(self, masks: Iterator[np.ndarray] | Sequence[np.ndarray]) -> None:
        pieces, rest = [], np.zeros(0, dtype=bool)
        for mask in masks:
            joined = np.concatenate([rest, mask])
            whole = len(joined) // _BLOCK * _BLOCK
            pieces.append(np.packbits(joined[:whole]))
            rest = joined[whole:]
        rest = np.concatenate([rest, np.zeros(-len(rest) % _BLOCK, dtype=bool)])
        self._bits = np.concatenate([*pieces, np.packbits(rest)]).reshape(-1, _BLOCK // 8)
        counts = (
            np.bitwise_count(self._bits).sum(axis=1, dtype=np.int64)
            if hasattr(np, "bitwise_count")
            else np.array([np.unpackbits(block).sum(dtype=np.int64) for block in self._bits], dtype=np.int64)
        )
        self._before = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # chosen rows before each block

    def __len__(self) -> int:
        return int(self._before[-1])

    def at(self, position: int) -> int:
        block = int(np.searchsorted(self._before, position, side="right")) - 1
        within = np.flatnonzero(np.unpackbits(self._bits[block]))[position - int(self._before[block])]
        return block * _BLOCK + int(within)

    def __iter__(self) -> Iterator[int]:
        for block, bits in enumerate(self._bits):
            if self._before[block] < self._before[block + 1]:
                yield from (np.flatnonzero(np.unpackbits(bits)) + block * _BLOCK).tolist()

    def __contains__(self, row: object) -> bool:
        if not isinstance(row, int) or not 0 <= row < self._bits.size * 8:
            return False
        byte = self._bits.reshape(-1)[row // 8]
        return bool(byte >> (7 - row % 8) & 1)

    def between(self, first: int, end: int) -> PartOfSelection:
        """The chosen ones of the rows from `first` to before `end`."""
        return PartOfSelection(self, range(self.count_before(first), self.count_before(end)))

    def count_before(self, row: int) -> int:
        """Number of chosen rows before a row."""
        block, within = divmod(row, _BLOCK)
        before = int(self._before[block])
        return before + int(np.unpackbits(self._bits[block])[:within].sum()) if within else before


class PartOfSelection(ChosenRows):
    """Consecutive ones of the chosen rows, by their positions in the selection."""

    def __init__(self, whole: Selection, positions: range) -> None:
        self._whole, self._positions = whole, positions

    def __len__(self) -> int:
        return len(self._positions)

    def at(self, position: int) -> int:
        return self._whole.at(self._positions[position])

    def between(self, first: int, end: int) -> PartOfSelection:
        """The chosen ones of the rows from `first` to before `end`."""
        others = self._whole.between(first, end)._positions
        start = max(self._positions.start, others.start)
        return PartOfSelection(self._whole, range(start, max(start, min(self._positions.stop, others.stop))))


class RangesOfSelection(ChosenRows):
    """The chosen ones of the rows in several ranges: in a number a range, so that many such share one selection.

    `ranges` (n, 2) are the first row of each, and the row after its last one, ascending.
    """

    def __init__(self, whole: Selection, ranges: np.ndarray) -> None:
        self._whole, self._ranges = whole, ranges
        counts = np.array([whole.count_before(row) for row in ranges.reshape(-1).tolist()], np.int64).reshape(-1, 2)
        self._first = counts[:, 0]
        self._before = np.concatenate([[0], np.cumsum(counts[:, 1] - counts[:, 0])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._before[-1])

    def at(self, position: int) -> int:
        number = int(np.searchsorted(self._before, position, side="right")) - 1
        return self._whole.at(int(self._first[number]) + position - int(self._before[number]))

    def between(self, first: int, end: int) -> RangesOfSelection:
        """The chosen ones of the rows from `first` to before `end`."""
        within = self._ranges.clip(first, end)
        return RangesOfSelection(self._whole, within[within[:, 0] < within[:, 1]])
