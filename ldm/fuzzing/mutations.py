"""Mutations of bytes, text and JSON. Each takes (bytes, random numbers, other files' bytes) and returns other bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]

# Integers at which sizes, counts and offsets overflow.
_EDGES = [0, 1, 2, *(2**bits + step for bits in (7, 8, 15, 16, 24, 31, 32, 40, 63, 64) for step in (-1, 0))]

# JSON texts that stand for a value of another type, an extreme one, or none.
JSON_TEXTS = (
    *("null", "true", "false", "0", "-1", "1", "0.5", "-0.0", "1e308", "1e999", "-1e999", "NaN", "Infinity"),
    *("-Infinity", "2147483648", "-9223372036854775809", "1" + 400 * "0", "1" + 5000 * "0", "[]", "[[]]", "{}"),
    *("[null]", "[0, 0]", '[{"text": 1}]', '{"a": {"b": []}}', '""', '" "', '"a"', '"nan"', '"-1"', '"../../x"'),
    *('"/"', '"\\u0000"', '"\\ud800"', '"\\u202e\\u00e9\\n"', '"' + 3000 * "x" + '"', "[" * 2000 + "]" * 2000),
    *('{"a":' * 2000 + "1" + "}" * 2000, "", "undefined", "'a'", "[1,]", "0x10", "1_000", "[" + 999 * "1," + "1]"),
)
_PLACEHOLDER = '"@@placeholder@@"'

_TEXT_PIECES = (
    *(
        '"',
        "'",
        ",",
        ";",
        "\t",
        "|",
        "\n",
        "\r",
        "\r\n\r\n",
        "\0",
        "\ufeff",
        "\u2028",
        "\x85",
        "\ud800",
        "\udcff",
        "%s",
    ),
    *("{}", "[", "}", ":", "#", "- ", "&a ", "*a", "!!python/object:os.system ", "<<: ", "\\", "../", "/dev/zero"),
    *("~", "nan", "é", "é", "\U0001f600", "=1+1", 4000 * "y", 300 * "\n", 500 * "["),
)


def flip_bits(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _count in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_end(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data))]


def remove_range(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    begin, end = _range(data, rng)
    return data[:begin] + data[end:]


def repeat_range(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    begin, end = _range(data, rng)
    return data[:end] + data[begin:end] * rng.choice((1, 1, 3)) + data[end:]


def swap_ranges(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def insert_noise(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.choice((1, 4, 64))) + data[place:]


def fill_range(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    begin, end = _range(data, rng)
    return data[:begin] + rng.choice((b"\0", b"\xff", b" ", b"9")) * (end - begin) + data[end:]


def set_integer(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Write an extreme number over some bytes: a size or an offset, if they are in a header."""
    size, place = rng.choice((1, 2, 4, 8)), rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))
    value = rng.choice(_EDGES) % 2 ** (8 * size)
    return (data[:place] + value.to_bytes(size, rng.choice(("little", "big"))) + data[place + size :])[: len(data)]


def splice(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """The beginning of one file and the end of another."""
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def replace_file(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Another file under this one's name, nothing, or nonsense."""
    return rng.choice((rng.choice(others), rng.choice(others), b"", b"\0" * len(data), rng.randbytes(len(data)), b"\n"))


def _range(data: bytes, rng: Random) -> tuple[int, int]:
    begin = rng.randrange(len(data))
    return begin, min(len(data), begin + rng.choice((1, 2, 8, 64, max(1, len(data) // 3))))


BYTES: tuple[Mutation, ...] = (
    *(flip_bits, flip_bits, set_integer, set_integer, cut_end, remove_range, repeat_range, swap_ranges, insert_noise),
    *(fill_range, splice, replace_file),
)


def change_lines(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Remove, repeat, swap or join lines."""
    lines = data.splitlines(keepends=True)
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    change = rng.randrange(5)
    if change == 0:
        del lines[place]
    elif change == 1:
        lines.insert(other, lines[place])
    elif change == 2:
        lines[place], lines[other] = lines[other], lines[place]
    elif change == 3:
        lines[place] = lines[place].rstrip(b"\r\n")
    else:
        lines[place] = lines[place].replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\n")))
    return b"".join(lines)


def insert_text(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Put in characters that have a meaning somewhere."""
    for _count in range(rng.choice((1, 2, 3))):
        place = rng.randrange(len(data) + 1)
        data = data[:place] + rng.choice(_TEXT_PIECES).encode("utf-8", "surrogatepass") + data[place:]
    return data


def change_number(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    """Put an extreme number, or something that is none, where a number stands."""
    numbers = list(re.finditer(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", data))
    if not numbers:
        return data
    found = rng.choice(numbers)
    return data[: found.start()] + rng.choice(JSON_TEXTS).encode() + data[found.end() :]


def change_encoding(data: bytes, rng: Random, _: Sequence[bytes]) -> bytes:
    text = data.decode("utf-8", "replace")
    mark = rng.choice(("", "\ufeff", "é "))
    return (mark + text).encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8", "cp037")), "replace")


def change_words(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Put a word in another's place: one of this file, or of another."""
    words, new = re.findall(rb"[\w.]+", data), re.findall(rb"[\w.]+", rng.choice((data, rng.choice(others)))[:10000])
    if not words or not new:
        return data
    return data.replace(rng.choice(words), rng.choice(new), rng.choice((1, -1)))


TEXT: tuple[Mutation, ...] = (
    *(change_lines, change_lines, insert_text, insert_text, change_number, change_encoding, change_words),
    *(flip_bits, cut_end, remove_range, repeat_range, splice, replace_file),
)


def change_json(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """Change values and keys in a JSON text: other types, extremes, missing, repeated, renamed, deeply nested."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return insert_text(data, rng, others)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _changed(value, rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    while _PLACEHOLDER in text:
        text = text.replace(_PLACEHOLDER, rng.choice(JSON_TEXTS), 1)
    return text.encode("utf-8", "surrogatepass")


def _changed(value: Any, rng: Random) -> Any:
    """The value with a change somewhere in it; each level is as likely to be the one that changes."""
    new = _PLACEHOLDER.strip('"')
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return new
    keys: Any = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    change = rng.random()
    if change < 0.7:
        value[key] = _changed(value[key], rng) if isinstance(value[key], dict | list) and rng.random() < 0.7 else new
    elif change < 0.8:
        del value[key]
    elif change < 0.9:
        value[rng.choice(keys)] = value[key]
    elif isinstance(value, dict):
        value[rng.choice(("x", "", "format", "\ud800", f"{key} ", str(key).upper()))] = value.pop(key)
    else:
        value.insert(key, value[key] if rng.random() < 0.5 else new)
    return value


def change_json_line(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """`change_json` in one line."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = change_json(lines[place], rng, others)
    return b"\n".join(lines)


JSON: tuple[Mutation, ...] = (*(change_json,) * 8, *TEXT)
JSON_LINES: tuple[Mutation, ...] = (*(change_json_line,) * 8, *TEXT)


def mutate(data: bytes, rng: Random, mutations: Sequence[Mutation], others: Sequence[bytes]) -> bytes:
    """One to four of the mutations, one after the other."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(mutations)(data, rng, others) if data else data
    return data
