"""Folders at URLs in memory, and copies of local ones there."""

import secrets
from pathlib import Path

import pytest

from odvae.storage import client, states
from odvae.storage.files import atomic_file
from odvae.storage.paths import open_path


def use_own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing of another test in any cache, and short pauses after faults."""
    monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "blocks"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(states, "_states", {})


def new_url() -> Path:
    return open_path(f"memory://{secrets.token_hex(4)}/folder")


def copied(folder: Path, url: Path) -> Path:
    """`url` with the files of a folder and those below it."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with atomic_file(url / path.relative_to(folder).as_posix()) as file:
            file.write(path.read_bytes())
    return url
