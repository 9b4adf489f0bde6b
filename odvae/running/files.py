"""Files and folders that appear whole or not at all, and JSON in them."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from odvae.running.errors import InputError, write_errors_named
from odvae.running.text import decode_text


def name_aside(path: Path) -> Path:
    """A name beside `path` for what is not whole yet, which no other process has, on whichever machine.

    It says who writes it: `.NAME.HOST-PROCESS-RANDOM.partial`.
    """
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def _host() -> str:
    return socket.gethostname()[:40]


def remove_leftovers(folder: Path, of_the_dead: bool = False) -> None:
    """Remove what killed writers left half-written in the folder and below.

    `of_the_dead`: other processes may be writing, so only what one of this machine wrote that is no more.
    """
    _remove(folder.rglob(".*.partial"), of_the_dead)


def _remove(leftovers: Iterable[Path], of_the_dead: bool) -> None:
    for leftover in list(leftovers):
        if not of_the_dead or _writer_is_gone(leftover):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _writer_is_gone(leftover: Path) -> bool:
    """Whether a process of this machine was writing it that is no more."""
    found = re.search(rf"\.{re.escape(_host())}-(\d+)-[0-9a-f]{{8}}\.partial$", leftover.name)
    if found is None:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, and is another user's
        return False
    return False


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends well; until then `path` keeps what it held."""
    path = Path(path)
    aside = name_aside(path)
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(path: str | Path) -> Iterator[Path]:
    """A new folder that appears at `path` only when the block ends well; a folder already there is replaced."""
    path = Path(path)
    _remove(path.parent.glob(f".{glob.escape(path.name)}.*.partial"), of_the_dead=True)
    aside, retired = name_aside(path), name_aside(path)
    aside.mkdir(parents=True)
    try:
        yield aside
        replaces = path.exists()
        if replaces:
            path.rename(retired)
        try:
            aside.rename(path)
        except OSError:
            if replaces:
                retired.rename(path)
            raise
    finally:
        for folder in (aside, retired):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def install_folder(path: str | Path) -> Iterator[Path]:
    """A new folder whose files move into `path`, each whole, when the block ends well; other files there stay.

    config.json moves last: where it is, the rest of the model is too.
    """
    path = Path(path)
    aside = path / name_aside(path).name
    aside.mkdir(parents=True)
    try:
        with write_errors_named(path):
            yield aside
        for file in sorted(aside.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(path / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: str | Path, text: str) -> None:
    with written_aside(path) as file:
        file.write(text.encode())


def read_json(path: str | Path) -> Any:
    return parse_json(decode_text(Path(path).read_bytes(), str(path)), str(path))


def parse_json(text: str, name: str) -> Any:
    """The value in a JSON text; `name` stands for it in the InputError where it is not valid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, brackets in brackets
        raise InputError(f"{name} is not valid JSON: {error}") from None


def read_json_lines(path: str | Path) -> list[dict]:
    """The rows of a .jsonl file; a last line cut short by a kill is left out."""
    rows = []
    lines = decode_text(Path(path).read_bytes(), str(path)).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise InputError(f"{path}, line {number} is not valid JSON") from None
    return rows


def make_output_folder(path: str | Path) -> Path:
    """Create a folder and prove that it can be written, before any long work begins."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write_test.{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write into output folder {path}: {error.strerror}") from None
    return path
