"""A report as a flat table: one row per measured value, with its interval, protocol, command and commit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from odvae.running.errors import InputError

INHERITED = ("n", "protocol", "command", "commit")  # keys of a section that hold for all values in it


@dataclass(frozen=True)
class Row:
    """One measured value of a report; `name` is its dotted path in report.json."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    protocol: str
    command: str
    commit: str


def flatten(report: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Every value in report.json, and the minutes of `stages` (each stage's record: minutes, command, commit)."""
    rows = []
    for name, part in report.items():
        if isinstance(part, Mapping) and name != "minutes":
            rows += list(_rows_in(part, name, dict.fromkeys(INHERITED)))
    for stage, record in stages.items():
        about = {"n": None, "protocol": "wall time of all runs of the stage", **record}
        rows.append(_row(f"minutes.{stage}", record["minutes"], None, about))
    return rows


def _rows_in(part: Mapping[str, Any], path: str, about: Mapping[str, Any]) -> Iterator[Row]:
    about = {key: part.get(key, about[key]) for key in INHERITED}
    for key, value in part.items():
        if isinstance(value, Mapping) and key != "protocol":
            yield from _rows_in(value, f"{path}.{key}", about)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in INHERITED:
            yield _row(f"{path}.{key}", value, part.get(f"{key}_interval"), about)


def _row(name: str, value: float, interval: tuple[float, float] | None, about: Mapping[str, Any]) -> Row:
    if interval is not None and not (isinstance(interval, (list, tuple)) and len(interval) == 2):
        raise InputError(
            f"the report was damaged: {name}_interval must be a list of 2 numbers, found {interval!r:.100}"
        )
    low, high = interval or (None, None)
    command, commit = str(about["command"] or ""), str(about["commit"] or "")
    return Row(name, value, low, high, about["n"], as_text(about["protocol"]), command, commit)


def as_text(protocol: Any) -> str:
    """A protocol (a string, or a mapping of its choices) as one line."""
    if isinstance(protocol, Mapping):
        return "; ".join(f"{key}: {value}" for key, value in protocol.items() if value is not None)
    return str(protocol or "")


def to_csv(rows: list[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return buffer.getvalue()
