"""Work in parts: `part=i/n` is one of n commands that any scheduler runs in any order, before a last one finishes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import xxhash

_LARGEST_COUNT = 100_000


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`; numbers begin at 1, as in `part=1/8`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Parse "3/8". Raises ValueError, which says what is allowed, for anything else."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        if found is None:
            raise ValueError(f"found {text!r}; expected i/n, such as 3/8")
        part = cls(int(found[1]), int(found[2]))
        if not 1 <= part.count <= _LARGEST_COUNT:
            raise ValueError(f"found {text!r}; the number of parts is from 1 to {_LARGEST_COUNT}")
        if not 1 <= part.number <= part.count:
            raise ValueError(f"found {text!r}; parts are numbered from 1/{part.count} to {part.count}/{part.count}")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def prefix(self) -> str:
        """The beginning of the names of this part's files, of the same length in all parts: part003-."""
        return f"part{self.number:0{max(3, len(str(self.count)))}d}-"

    def has(self, name: str | bytes) -> bool:
        """Whether an input belongs to this part: a function of its name and the number of parts, whatever else there
        is, so that an input that is added or removed changes one part only."""
        return part_of(name, self.count) == self.number


def part_of(name: str | bytes, count: int) -> int:
    """The number of the part of `count` that an input belongs to."""
    data = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    return xxhash.xxh3_64_intdigest(data) % count + 1
