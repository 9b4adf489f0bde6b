"""Settings of the demo's videos."""

from __future__ import annotations

from pydantic import Field

from odvae.running.settings import Settings


class DemoVideoSettings(Settings):
    count: int = Field(2400, ge=1)
    """Videos to render."""
    fps: int = Field(8, ge=1)
    """Frames per second of the files."""
    seed: int = 0
    """Seed of the scenes."""
