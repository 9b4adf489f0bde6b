"""A stage of the pipeline at work: how long it has worked, over all its runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from odvae.running.files import read_json, write_json
from odvae.running.run_folder import code_version


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
