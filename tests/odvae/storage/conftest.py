"""Fixtures of the storage tests: a cache of each test's own, a served folder, a bucket in memory."""

import secrets

import pytest
from remote_files import DATA

from odvae.storage import client, states
from odvae.storage.paths import open_path


@pytest.fixture(autouse=True)
def _own_cache_and_short_waits(tmp_path, monkeypatch):
    monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(states, "_states", {})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(DATA)
    return tmp_path / "served"


@pytest.fixture
def bucket():
    return open_path(f"memory://{secrets.token_hex(4)}")
