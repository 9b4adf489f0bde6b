"""A run of the smallest config, for all tests of the scripts."""

from pathlib import Path

import pytest
from scripts import fresh
from stages import BIN, STAGES, command


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A run folder: every stage by its script in a fresh interpreter, the first by accelerate launch."""
    folder = tmp_path_factory.mktemp("runs") / "smallest"
    for name in STAGES:
        start = [BIN / "accelerate", "launch"] if name == STAGES[0] else [BIN / "python"]
        printed = fresh(*start, *command(name, folder))
        assert "output: " in printed
        assert ("next:   accelerate launch pipelines/" in printed) == (name != STAGES[-1])
    return folder
