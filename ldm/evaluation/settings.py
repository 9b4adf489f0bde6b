"""Settings of the evaluation of generated videos."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from odvae.running.settings import Settings

NetworkName = Literal["random", "i3d", "c3d", "videomae"]
ProtocolName = Literal["clip", "stylegan-v-16f", "stylegan-v-128f", "stylegan-v-128f-8", "videogpt-16f"]


class EvalLDMSettings(Settings):
    renamed_section: ClassVar[str] = "report"
    renamed_keys: ClassVar[dict[str, str]] = {"shown": "num_visualized"}

    clips: int | None = Field(None, ge=2)
    """Videos of each kind (generated, real, reconstructed) that distances compare; fewer are an error. null: as many as
    there are, at most 96."""
    reference_split: Literal["held_out", "train", "all"] = "held_out"
    """Real videos that distances compare with. Published protocols take training videos, or all: so does a model that
    has learned its training videos by heart."""
    allow_few_clips: bool = False
    """Compute distances on the features of i3d, c3d and videomae also of fewer videos than features, where they are
    biased: as a trend within an experiment, not to be compared with published values."""
    num_visualized: int = Field(12, ge=1)
    """Videos of each kind on the report page."""
    batch_size: int = Field(8, ge=1)
    """Videos reconstructed and scored at a time on each rank."""
    protocol: ProtocolName = "clip"
    """Which frames are compared (ldm/evaluation/protocols.py): whole clips, one of StyleGAN-V's three protocols, or
    VideoGPT's 16 frames."""
    networks: tuple[NetworkName, ...] = ("random",)
    """Feature networks of the distances: "random" needs no download, "i3d" gives FVD and KVD, "c3d" the inception
    score on UCF101, "videomae" is more sensitive to motion."""
    i3d: str | None = None
    """I3D's weights: a state dict or a TorchScript file; null: StyleGAN-V's, downloaded once."""
    i3d_sha256: str | None = None
    """Expected sha256 of I3D's weights; null: a TorchScript file must be StyleGAN-V's, a state dict is not checked."""
    c3d: str | None = None
    """C3D's weights, for "c3d": TGANv2's conv3d_deepnetA_ucf.npz."""
    c3d_mean: str | None = None
    """The mean video that C3D subtracts: TGANv2's mean2.npz."""
    videomae: str | None = None
    """Folder or hub name of a VideoMAE classifier, for "videomae"."""
    clip_model: str | None = None
    """Folder or hub name of a CLIP model; null: no CLIP score."""
    reference: str | None = None
    """Folder of real videos' features from another evaluation (its report/features); null: they are computed, and
    cached in this run's report/features."""
    bootstrap: int = Field(100, ge=0)
    """Bootstrap resamplings for confidence intervals; 0: no intervals."""
