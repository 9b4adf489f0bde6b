"""The order in which training visits its samples: all at random, or by blocks for storage where random reads are dear.

Both are pure functions of (seed, sample number), with constant time and memory: a resumed run continues with the next
sample, whatever its ranks and batch split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from odvae.clips.permutation import permuted, shuffled_index
from odvae.running.seeds import derive_seed


@dataclass(frozen=True)
class SampleOrder:
    """In every epoch each sample comes once, in another order.

    `exact`: a random permutation of all samples. Each batch reads from all shards, on every node.

    `blocks`: the samples of an epoch are a circle, cut at a random place into `parts` pieces of equal length; a piece
    is cut into blocks of `block` consecutive samples, and its blocks are taken in a random order. Those of `buffer`
    samples at a time are mixed: their samples come in a random order before those of the next blocks. No buffer is
    stored; it says how many samples are read from within a time, so how much a cache of whole blocks has to hold.

    Each global batch has the same number of samples from each part, the first ones from the first part, as ranks have
    the first ones of a batch. So with as many parts as nodes (and no gradient accumulation) a node reads the blocks of
    one part, an n-th of the data in an epoch, which no other node reads; the few samples of an epoch that fill no
    global batch are read by any. With one part, all nodes read from the same blocks at a time, each other samples. With
    gradient accumulation a rank has one piece of the global batch for each micro-step, from as many parts.
    """

    shuffle: Literal["exact", "blocks"] = "exact"
    block: int = 1
    buffer: int = 1
    parts: int = 1
    global_batch: int = 1
    """Samples per optimizer step; a multiple of `parts`."""

    def index(self, number: int, count: int, seed: int) -> int:
        """Index, among `count` samples, of sample `number`."""
        if self.shuffle == "exact":
            return shuffled_index(number, count, seed)
        epoch = number // count
        cut = derive_seed(seed, "cut", epoch) % count
        return (cut + self._on_circle(number, epoch, count, seed)) % count

    def _on_circle(self, number: int, epoch: int, count: int, seed: int) -> int:
        """Place of a sample after the cut: those of whole global batches by their parts, then the others."""
        batch = self.global_batch if self.parts > 1 else 1
        before = -epoch * count % batch  # samples that belong to a global batch of the last epoch
        whole = (count - before) // batch * batch if count > before else 0
        position = number % count - before
        if not 0 <= position < whole:
            rest = position + before if position < 0 else position + before - whole
            return whole + permuted(rest, count - whole, derive_seed(seed, "order", epoch))
        step, within = divmod(position, batch)
        part, offset = divmod(within, batch // self.parts)
        length = whole // self.parts
        return part * length + self._in_blocks(step * (batch // self.parts) + offset, length, seed, epoch, part)

    def _in_blocks(self, position: int, length: int, seed: int, epoch: int, part: int) -> int:
        """Element `position` of a permutation of a part's `length` samples."""
        mixed = max(1, self.buffer // self.block) * self.block
        first = position // mixed * mixed
        key = derive_seed(seed, "buffer", epoch, part, first)
        slot, offset = divmod(first + permuted(position - first, min(mixed, length - first), key), self.block)
        whole = length // self.block  # the samples after the last whole block are a shorter one, the last
        number = permuted(slot, whole, derive_seed(seed, "blocks", epoch, part)) if slot < whole else whole
        return number * self.block + offset
