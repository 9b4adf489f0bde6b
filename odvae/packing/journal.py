"""The journal of a packing: what was found in each file, so that a packing that goes on examines no file twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from odvae.packing.source_folder import member_kind
from odvae.running.errors import InputError, write_errors_named
from odvae.running.failures import Failure
from odvae.running.files import atomic_file, load_json, read_json_lines
from odvae.shards.facts import checked_about

JOURNAL = "examined.jsonl"


@dataclass(frozen=True)
class Examined:
    """The facts of a decoded file (or of a scene of it, with its frames), or the reason why the file is left out."""

    name: str
    key: str = ""
    reason: str = ""
    about: dict | None = None
    scene: tuple[int, int] | None = None

    @property
    def sample_name(self) -> str:
        """The name in reports, with the frames of a scene."""
        return self.name if self.scene is None else f"{self.name}, frames {self.scene[0]} to {self.scene[1] - 1}"


@dataclass
class Journal:
    """The rows of a journal, by file; `limits` are the present ones (seconds, GiB).

    A row is right for a file while the file has the size and time of the row. A row that says that a limit was exceeded
    is right for these limits, and one of a process that was killed is never written.
    """

    path: Path
    limits: list[float]
    rows: dict[str, dict] = field(default_factory=dict)
    _file: TextIO | None = None

    def open(self) -> Journal:
        for path in [path for path in (self.path, *self._pieces()) if path.is_file()]:
            for row in read_json_lines(path):
                if row.get("found") == []:
                    self.rows.pop(str(row.get("name")), None)
                elif _is_whole(row):
                    self.rows[row["name"]] = row
        self.write(self.rows)  # without a truncated last line
        return self

    def write(self, names: Iterable[str]) -> None:
        """Write the rows of these files, in this order."""
        self.close()
        with atomic_file(self.path) as file:
            for name in names:
                file.write(f"{json.dumps(self.rows[name])}\n".encode())
        for piece in self._pieces():
            piece.unlink()
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def begin_piece(self) -> None:
        """Write further rows into another file, which `open` reads too: files that are uploaded are complete then, and
        uploaded once."""
        self.close()
        piece = self.path.with_name(f"{self.path.stem}-{len(self._pieces()):06d}{self.path.suffix}")
        self._file = open(piece, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def _pieces(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))

    def recall(self, name: str, state: list[int | str] | None) -> list[dict] | None:
        """What was found in a file with this state (None: of a URL, of which none is known); None if it must be
        examined."""
        row = self.rows.get(name)
        if row is None or row.get("limits", self.limits) != self.limits:
            return None
        return row["found"] if state is None or row.get("of") == state else None

    def remember(self, name: str, state: list[int | str] | None, result: list[dict] | Failure) -> list[dict]:
        """Write down what was found in a file, and return it."""
        row: dict[str, Any] = {"name": name, "of": state}
        row["found"] = [{"reason": result.reason}] if isinstance(result, Failure) else result
        if isinstance(result, Failure) and result.cause == "limit":
            row["limits"] = self.limits
        self.rows[name] = row
        if not isinstance(result, Failure) or result.cause != "system":
            self._append(row)
        return row["found"]

    def forget(self, names: Iterable[str]) -> None:
        """Have these files examined again by the next command."""
        for name in names:
            self._append({"name": name, "found": []})

    def _append(self, row: dict) -> None:
        assert self._file is not None
        with write_errors_named(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with write_errors_named(self.path):
                file.close()


def examined_in(row: dict) -> Iterator[Examined]:
    """The samples, or the reason, in a row of a journal."""
    for one in row["found"]:
        scene = tuple(one["scene"]) if one.get("scene") else None
        yield Examined(row["name"], one.get("key", ""), one.get("reason", ""), one.get("about"), scene)


def read_rows_in_order(path: Path) -> Iterator[dict]:
    """The rows of the journal of a part that is complete, one after the other. Raises InputError for a damaged one."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = load_json(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not _is_whole(row):
                raise InputError(f"{path}, line {number} was damaged: remove {path.parent}, and run its part again")
            yield row


def _is_whole(row: dict) -> bool:
    """Whether a row of the journal is as it was written; what was damaged is examined again."""
    found = row.get("found")
    if not isinstance(row.get("name"), str) or not isinstance(found, list) or not found:
        return False
    return all(isinstance(one, dict) and (_is_reason(one) or _is_sample(one, row["name"])) for one in found)


def _is_reason(one: dict) -> bool:
    return one.keys() == {"reason"} and isinstance(one["reason"], str)


def _is_sample(one: dict, name: str) -> bool:
    about, scene = one.get("about"), one.get("scene")
    if not isinstance(one.get("key"), str) or not isinstance(about, dict):
        return False
    if scene is not None and not (isinstance(scene, list) and len(scene) == 2 and all(type(n) is int for n in scene)):
        return False
    checked, wrong = checked_about(json.dumps(about).encode())
    needed = {"sha256", "frames", "height", "width", "fps"}
    if member_kind(name) == "mp4" or about.get("fps"):
        needed |= {"seconds", "variable_rate"}
    return not wrong and checked.keys() >= needed
