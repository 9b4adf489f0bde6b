"""The numbers of a report as a flat table: one row a number, with its spread, protocol, command and commit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

ABOUT = ("n", "protocol", "command", "commit")  # what a part says about all its numbers


@dataclass(frozen=True)
class Number:
    """One number of a report. `name` is its path in report.json."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    protocol: str
    command: str
    commit: str


def flatten(report: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> list[Number]:
    """Every number of report.json, and the minutes of `stages` (each stage's record: minutes, command, commit)."""
    numbers = []
    for name, part in report.items():
        if isinstance(part, Mapping) and name != "minutes":
            numbers += list(_numbers_in(part, name, dict.fromkeys(ABOUT)))
    for stage, record in stages.items():
        about = {"n": None, "protocol": "wall time of all runs of the stage", **record}
        numbers.append(_number(f"minutes.{stage}", record["minutes"], None, about))
    return numbers


def _numbers_in(part: Mapping[str, Any], path: str, about: Mapping[str, Any]) -> Iterator[Number]:
    about = {key: part.get(key, about[key]) for key in ABOUT}
    for key, value in part.items():
        if isinstance(value, Mapping) and key != "protocol":
            yield from _numbers_in(value, f"{path}.{key}", about)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ABOUT:
            yield _number(f"{path}.{key}", value, part.get(f"{key}_interval"), about)


def _number(name: str, value: float, interval: tuple[float, float] | None, about: Mapping[str, Any]) -> Number:
    low, high = interval or (None, None)
    command, commit = about["command"] or "", about["commit"] or ""
    return Number(name, value, low, high, about["n"], as_text(about["protocol"]), command, commit)


def as_text(protocol: Any) -> str:
    """A protocol, text or data, as one line."""
    if isinstance(protocol, Mapping):
        return "; ".join(f"{key}: {value}" for key, value in protocol.items() if value is not None)
    return protocol or ""


def to_csv(numbers: list[Number]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Number)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(number) for number in numbers)
    return buffer.getvalue()
