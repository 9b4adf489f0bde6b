"""The run folder: where each stage's output lies, how files get there whole, and how long a stage took."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from odvae.running.errors import InputError, write_errors_named


@dataclass(frozen=True)
class RunFolder:
    """`runs/<experiment>/` with one folder a stage; each stage reads the folder before it and nothing else."""

    root: Path

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def vae(self) -> Path:
        return self.root / "vae"

    @property
    def latents(self) -> Path:
        return self.root / "latents"

    @property
    def ldm(self) -> Path:
        return self.root / "ldm"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def report(self) -> Path:
        return self.root / "report"


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends well; until then `path` keeps what it held."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
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
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    if path.exists():
        retired = path.with_name(f".{path.name}.retired")
        shutil.rmtree(retired, ignore_errors=True)
        path.rename(retired)
        aside.rename(path)
        shutil.rmtree(retired)
    else:
        aside.rename(path)


@contextlib.contextmanager
def install_folder(path: str | Path) -> Iterator[Path]:
    """A new folder whose files move into `path`, each whole, when the block ends well; other files there stay.

    config.json moves last: where it is, the rest of the model is too.
    """
    path = Path(path)
    aside = path / ".installing.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with write_errors_named(path):
        yield aside
    for file in sorted(aside.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(path / file.name)
    aside.rmdir()


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: str | Path, text: str) -> None:
    with written_aside(path) as file:
        file.write(text.encode())


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


def read_json_lines(path: str | Path) -> list[dict]:
    """The rows of a .jsonl file; a last line cut short by a kill is left out."""
    rows = []
    lines = Path(path).read_text().splitlines()
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


def code_version() -> dict[str, str]:
    """Which code runs: the package's version, and the commit where it runs from a git checkout."""
    record = {"version": version("odvae"), "commit": "unknown (not a git checkout)"}
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        # Only reading: `status` would lock the index to refresh it, and a run killed then would leave it locked.
        git = ["git", "--no-optional-locks", "-c", f"safe.directory={checkout}", "-C", str(checkout)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            record["commit"] = commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
    return record


class StageClock:
    """Minutes a stage has worked, over all its (interrupted) runs, with the command and commit: `stage.json`.

    Only the main process writes.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stage.json"
        self.before = read_json(self.path)["minutes"] if self.path.exists() else 0.0
        self.start = time.monotonic()

    def save(self, finished: bool) -> None:
        """Write the record."""
        minutes = self.before + (time.monotonic() - self.start) / 60
        record = {"minutes": round(minutes, 3), "finished": finished, "command": " ".join(sys.argv), **code_version()}
        write_json(self.path, record)

    @property
    def finished(self) -> bool:
        """Whether an earlier run of the stage came to its end."""
        return self.path.exists() and read_json(self.path)["finished"]
