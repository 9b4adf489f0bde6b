"""Settings of the scores of generated videos."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from odvae.running.settings import Settings

NetworkName = Literal["random", "i3d", "videomae"]
ProtocolName = Literal["clip", "stylegan-v-16f", "stylegan-v-128f", "stylegan-v-128f-8", "videogpt-16f"]


class EvalLDMSettings(Settings):
    renamed_section: ClassVar = "report"
    renamed_keys: ClassVar = {"shown": "num_visualized"}

    clips: int = Field(96, ge=2)
    """Videos of each kind whose distances are measured (fewer where there are fewer)."""
    num_visualized: int = Field(12, ge=1)
    """Videos of each kind that the page plays."""
    batch_size: int = Field(8, ge=1)
    """Videos reconstructed and measured at a time on each rank."""
    protocol: ProtocolName = "clip"
    """Which frames are compared (ldm/protocol.py): whole clips, StyleGAN-V's three, or VideoGPT's 16 frames."""
    networks: tuple[NetworkName, ...] = ("random",)
    """Feature networks of the distances: "random" needs no download, "i3d" gives FVD and KVD, "videomae" follows
    motion better."""
    i3d: str | None = None
    """I3D's weights: a state dict or a TorchScript file; null: StyleGAN-V's, downloaded once."""
    i3d_sha256: str | None = None
    """What the file's sha256 must be; null: known for StyleGAN-V's, unchecked for a state dict."""
    videomae: str | None = None
    """Folder or hub name of a VideoMAE classifier, for "videomae"."""
    clip_model: str | None = None
    """Folder or hub name of a CLIP model; null: no CLIP score."""
    reference: str | None = None
    """Folder of real videos' features from another evaluation (its report/features); null: measured, and kept there."""
    bootstrap: int = Field(100, ge=0)
    """Resamplings that make an interval; 0: no intervals."""
