"""Layout of the run folder, and version and commit of the running code."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """`runs/<experiment>/` with one folder per stage; stages communicate only through these folders."""

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


def code_version() -> dict[str, str]:
    """The package's version, and the git commit if the code runs from a checkout."""
    record = {"version": version("odvae"), "commit": "unknown (not a git checkout)"}
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        # No optional locks: `status` would lock the index to refresh it, and a run killed then would leave it locked.
        git = ["git", "--no-optional-locks", "-c", f"safe.directory={checkout}", "-C", str(checkout)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            record["commit"] = commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
    return record
