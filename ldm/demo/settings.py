"""Settings of the demo's videos."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from odvae.running.settings import Settings


class DemoVideoSettings(Settings):
    count: int = Field(2400, ge=1)
    """Videos to render."""
    fps: int = Field(8, ge=1)
    """Frames per second of the files."""
    seed: int = 0
    """Seed of the scenes."""
    content: Literal["plain", "varied"] = "plain"
    """What the captions say: "plain", one shape that moves in a line at one speed; "varied", slow and fast shapes, some
    of which bounce, and in every twelfth video two of them."""
    diagonal: float = Field(0.0, ge=0, le=1)
    """Share of the videos in which the shape moves "diagonally", a word that the others do not have: for fine-tuning
    (configs/lora_demo.yaml)."""
