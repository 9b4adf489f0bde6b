"""JSON objects read from files, which name file, line and key where a value is missing or of another type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from odvae.running.errors import InputError


class JsonObject(dict[str, Any]):
    """A JSON object of a file. `row["key"]` raises InputError where there is no such key, and so do the methods, which
    also check the type. `source` names where it is from: the file, its line, the keys around it."""

    def __init__(self, values: Mapping[str, Any], source: object) -> None:
        super().__init__(values)
        self.source = str(source)

    def __missing__(self, key: str) -> NoReturn:
        raise InputError(f"{self.source} was damaged: it has no {key!r}")

    def text(self, key: str) -> str:
        return self[key] if isinstance(self[key], str) else self._refuse(key, "a text")

    def number(self, key: str) -> float:
        """A number; JSON of Python may have NaN and Infinity."""
        value = self[key]
        return value if _is_number(value) else self._refuse(key, "a number")

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        value = self[key]
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return value
        return self._refuse(key, "a list of texts")

    def numbers(self, key: str, count: int | None = None) -> list[float]:
        """A list of `count` numbers; None: of any length."""
        value = self[key]
        if isinstance(value, list) and all(map(_is_number, value)) and count in (None, len(value)):
            return value
        return self._refuse(key, "a list of numbers" if count is None else f"a list of {count} numbers")

    def number_pairs(self, key: str) -> list[tuple[float, float]]:
        """A list of pairs of numbers."""
        value = self[key]
        if isinstance(value, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in value
        ):
            return [(pair[0], pair[1]) for pair in value]
        return self._refuse(key, "a list of pairs of numbers")

    def section(self, key: str) -> JsonObject:
        """An object within this one."""
        value = self[key]
        return JsonObject(value, f"{self.source}: {key}") if isinstance(value, dict) else self._refuse(key, "an object")

    def sections(self, key: str) -> list[JsonObject]:
        """A list of objects."""
        value = self[key]
        if isinstance(value, list) and all(isinstance(one, dict) for one in value):
            return [JsonObject(one, f"{self.source}: {key}, number {i + 1}") for i, one in enumerate(value)]
        return self._refuse(key, "a list of objects")

    def has(self, key: str) -> bool:
        """Whether there is a value that is not null."""
        return self.get(key) is not None

    def _refuse(self, key: str, expected: str) -> NoReturn:
        raise InputError(f"{self.source} was damaged: {key} must be {expected}, found {self[key]!r:.100}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
