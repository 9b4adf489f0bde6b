"""Atomic writing of files and folders (complete or not at all), and reading of JSON."""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, get_type_hints

from odvae.running.errors import DiskError, InputError, write_errors_named
from odvae.running.json_objects import JsonObject
from odvae.running.text import check_is_file, read_text_file

T = TypeVar("T")

_ERRORS_SHOWN = 10  # keys of a damaged record


def temporary_path(path: Path) -> Path:
    """A unique path next to `path` for a file or folder that is not complete yet: .NAME.HOST-PROCESS-RANDOM.partial."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def _host() -> str:
    return socket.gethostname()[:40]


def remove_leftovers(folder: Path, dead_only: bool = False) -> None:
    """Remove incomplete files and folders that killed processes left in the folder and below.

    `dead_only`: remove only those whose writer was a process of this machine that has ended, since other processes may
    be writing.
    """
    _remove(folder.rglob(".*.partial"), dead_only)


def _remove(leftovers: Iterable[Path], dead_only: bool) -> None:
    for leftover in list(leftovers):
        if not dead_only or _writer_is_gone(leftover):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _writer_is_gone(leftover: Path) -> bool:
    """Whether the writer was a process of this machine that has ended."""
    found = re.search(rf"\.{re.escape(_host())}-(\d+)-[0-9a-f]{{8}}\.partial$", leftover.name)
    if found is None:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is running, as another user
        return False
    return False


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends without an error; otherwise `path` does not change."""
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with write_errors_named(path), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that replaces `path` when the block ends without an error; otherwise `path` does not change."""
    path = Path(path)
    _remove(path.parent.glob(f".{glob.escape(path.name)}.*.partial"), dead_only=True)
    temporary, retired = temporary_path(path), temporary_path(path)
    temporary.mkdir(parents=True)
    try:
        with write_errors_named(path):
            yield temporary
        replaces = path.exists()
        if replaces:
            path.rename(retired)
        try:
            temporary.rename(path)
        except OSError:
            if replaces:
                retired.rename(path)
            raise
    finally:
        for folder in (temporary, retired):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def install_folder(path: str | Path) -> Iterator[Path]:
    """A new folder whose files are moved into `path` when the block ends without an error; other files there stay.

    config.json is moved last: if it is there, the model is complete.
    """
    path = Path(path)
    temporary = path / temporary_path(path).name
    temporary.mkdir(parents=True)
    try:
        with write_errors_named(path):
            yield temporary
        flush_to_disk(temporary)
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(path / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush_to_disk(folder: Path) -> None:
    """Have every file of a folder on the disk, so that a loss of power after its renaming leaves no empty ones."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: str | Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


def append_text(path: Path, text: str) -> None:
    """Add a text at the end of a file."""
    with write_errors_named(path), open(path, "a", encoding="utf-8") as file:
        file.write(text)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises InputError that names the file where there is none, or it is not valid."""
    return parse_json(read_text_file(path), str(path))


def load_json(text: str | bytes) -> Any:
    """The value of a JSON text, in which an integer of more than 64 bits becomes a float: no count or size is so large,
    and arithmetic with it would raise an OverflowError. Raises ValueError for invalid text, RecursionError for deep
    nesting."""
    if isinstance(text, str) and not text.startswith("\ufeff"):
        return _DECODER.decode(text)  # `json.loads` would make a decoder each time
    return json.loads(text, parse_int=_int_of_64_bits)


def _int_of_64_bits(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 or -(2**63) <= int(digits) < 2**63 else float(digits)


_DECODER = json.JSONDecoder(parse_int=_int_of_64_bits)


def parse_json(text: str, name: str) -> Any:
    """Parse a JSON text. Raises InputError, which names the text `name`, if it is not valid."""
    try:
        return load_json(text)
    except (ValueError, RecursionError) as error:  # also for huge numbers and deep nesting
        raise InputError(f"{name} is not valid JSON: {error}") from None


def read_object(path: Path) -> JsonObject:
    """Read a JSON object from a file. Raises InputError if there is no such file, or it is not an object; so does the
    object, naming the file, for a key that it lacks."""
    check_is_file(path)
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return JsonObject(found, path)


def parse_record(kind: type[T], values: dict[str, Any], source: object) -> T:
    """A dataclass from the values of a JSON object. Raises InputError with `source` and every invalid key."""
    if values.keys() != (names := kind.__dataclass_fields__.keys()):  # type: ignore[attr-defined]
        differing = sorted(values.keys() ^ names)[:_ERRORS_SHOWN]
        raise InputError(f"{source}: missing or unexpected keys: {', '.join(map(repr, differing))}")
    from pydantic import ValidationError  # imported here, since models are imported without pydantic

    try:
        adapter = _adapter(kind)  # type: ignore[arg-type]  # classes are hashable
        return adapter.validate_json(json.dumps(values), strict=True)  # JSON mode: lists fill tuples
    except RecursionError:
        raise InputError(f"{source}: its values are nested too deeply") from None
    except ValidationError as error:
        lines = [_describe(problem) for problem in error.errors()[:_ERRORS_SHOWN]]
        raise InputError("\n  ".join([f"{source} was damaged:", *lines])) from None


def parse_record_bytes(kind: type[T], data: bytes) -> T | None:
    """A dataclass from a JSON object's bytes, as `parse_record` makes it; None where that raises an error.

    For large records: the values become Python objects once, so that the memory of others does not remain allocated.
    """
    from pydantic import ValidationError

    try:
        return kind(**_fields_adapter(kind).validate_json(data, strict=True))  # type: ignore[arg-type]  # as above
    except ValidationError:
        return None


@functools.cache
def _fields_adapter(kind: type) -> Any:
    from pydantic import ConfigDict, TypeAdapter, with_config
    from typing_extensions import TypedDict

    fields = TypedDict(kind.__name__, get_type_hints(kind))  # type: ignore[misc]  # not known before
    return TypeAdapter(with_config(ConfigDict(extra="forbid"))(fields))


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _describe(problem: Any) -> str:
    return f"{'.'.join(map(str, problem['loc']))}: found {problem['input']!r:.100}; {problem['msg']}"


def read_json_lines(path: str | Path) -> list[JsonObject]:
    """The rows of a .jsonl file; an incomplete last line, left by a killed process, is ignored. Raises InputError for
    any other line that is no JSON object; so does a row, naming file and line, for a key that it lacks."""
    rows = []
    lines = read_text_file(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = load_json(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise InputError(f"{path}, line {number} is not valid JSON") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
        rows.append(JsonObject(row, f"{path}, line {number}"))
    return rows


def make_output_folder(path: str | Path) -> Path:
    """Create a folder and check that files can be written into it. Raises DiskError if not."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_path(path / "write_test")
        try:
            probe.write_bytes(b"x" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"cannot write into output folder {path}: {error.strerror}") from None
    return path
