"""Settings of the evaluation of generated videos."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from odvae.running.settings import Settings

NetworkName = Literal["random", "i3d", "videomae"]
ProtocolName = Literal["clip", "stylegan-v-16f", "stylegan-v-128f", "stylegan-v-128f-8", "videogpt-16f"]


class EvalLDMSettings(Settings):
    renamed_section: ClassVar[str] = "report"
    renamed_keys: ClassVar[dict[str, str]] = {"shown": "num_visualized"}

    clips: int = Field(96, ge=2)
    """Videos of each kind (generated, real, reconstructed) that distances compare (all, if there are fewer)."""
    num_visualized: int = Field(12, ge=1)
    """Videos of each kind on the report page."""
    batch_size: int = Field(8, ge=1)
    """Videos reconstructed and scored at a time on each rank."""
    protocol: ProtocolName = "clip"
    """Which frames are compared (ldm/evaluation/protocols.py): whole clips, one of StyleGAN-V's three protocols, or
    VideoGPT's 16 frames."""
    networks: tuple[NetworkName, ...] = ("random",)
    """Feature networks of the distances: "random" needs no download, "i3d" gives FVD and KVD, "videomae" is more
    sensitive to motion."""
    i3d: str | None = None
    """I3D's weights: a state dict or a TorchScript file; null: StyleGAN-V's, downloaded once."""
    i3d_sha256: str | None = None
    """Expected sha256 of I3D's weights; null: a TorchScript file must be StyleGAN-V's, a state dict is not checked."""
    videomae: str | None = None
    """Folder or hub name of a VideoMAE classifier, for "videomae"."""
    clip_model: str | None = None
    """Folder or hub name of a CLIP model; null: no CLIP score."""
    reference: str | None = None
    """Folder of real videos' features from another evaluation (its report/features); null: they are computed, and
    cached in this run's report/features."""
    bootstrap: int = Field(100, ge=0)
    """Bootstrap resamplings for confidence intervals; 0: no intervals."""
