"""The order of an epoch: a random permutation of any number of samples, of which single elements can be computed."""

from __future__ import annotations

import functools
import math

import numpy as np

from odvae.running.seeds import derive_seed, numpy_generator

# Up to this many items the permutation is drawn by NumPy and kept: half a megabyte. A larger one is never stored.
LARGEST_STORED = 2**16
# Seven rounds of a balanced Feistel network cannot be distinguished from a random permutation (Patarin 2004,
# "Security of random Feistel schemes with 5 or more rounds", says five).
_ROUNDS = 7
_WORD = 2**64 - 1


def shuffled_index(number: int, count: int, seed: int) -> int:
    """Index, among `count` items, of sample `number`: each epoch visits every item once, in its own random order.

    A function of its arguments alone, in constant time and memory for any count.
    """
    epoch, position = divmod(number, count)
    if count <= LARGEST_STORED:
        return int(_stored_order(seed, epoch, count)[position])
    return permuted(position, count, derive_seed(seed, "order", epoch))


def permuted(position: int, count: int, key: int) -> int:
    """Element `position` of the permutation of range(count) with number `key`.

    A Feistel network on pairs (left, right) of a rectangle a x b that holds `count`, applied again while the result is
    beyond `count` ("cycle walking": Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    rows = math.isqrt(count - 1) + 1
    columns = -(-count // rows)  # rows * columns - count < rows: nearly every result is used at once
    index = position
    while True:
        left, right = divmod(index, columns)  # left < rows, right < columns
        for number in range(_ROUNDS):
            if number % 2:
                right = (right + _mixed(left, key + number)) % columns
            else:
                left = (left + _mixed(right, key + number)) % rows
        index = left * columns + right
        if index < count:
            return index


def _mixed(value: int, key: int) -> int:
    """64 bits that depend on all bits of both."""
    return _scrambled(_scrambled(value) ^ key)


def _scrambled(x: int) -> int:
    """The generator SplitMix64 (Steele et al. 2014) at state x."""
    x = (x + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


@functools.lru_cache(maxsize=8)
def _stored_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return numpy_generator(seed, "order", epoch).permutation(count)
