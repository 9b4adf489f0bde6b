"""The networks an experiment can train, chosen by `ldm.dit` or `ldm.unet`, and how to make and load one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ldm.diffusion import ObjectiveSettings
from ldm.latents.manifest import Manifest
from ldm.networks.conditioning import ConditioningSettings
from ldm.networks.dit import SIZES, DiT
from ldm.networks.unet import UNet
from odvae.running.commands import command_line
from odvae.running.errors import InputError
from odvae.running.files import read_json
from odvae.running.settings import Settings

Network = DiT | UNet
NETWORKS = {"DiT": DiT, "UNet": UNet}


class DiTSettings(Settings):
    renamed_keys: ClassVar = {"attention: factorised": "attention: factorized"}

    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent positions a token covers, along time, height and width."""
    size: Literal["S", "B", "L", "XL"] = "S"
    """Depth, width and heads by DiT's table: S 12, 384, 6; B 12, 768, 12; L 24, 1024, 16; XL 28, 1152, 16."""
    width: int | None = Field(None, ge=16)
    """Width of the transformer; null: the size's."""
    depth: int | None = Field(None, ge=1)
    """Blocks; null: the size's."""
    heads: int | None = Field(None, ge=1)
    """Attention heads; width / heads must be an even number of at least 16; null: the size's."""
    attention: Literal["full", "factorized"] = "full"
    """Every block sees all tokens, or its frame and its place in turn (Latte's): cheaper for long videos."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLPs over the width."""
    rope_theta: float = Field(10000.0, gt=1)
    """Base of the rotary frequencies; a smaller one turns faster, for small grids."""

    @property
    def sizes(self) -> dict[str, int]:
        depth, width, heads = SIZES[self.size]
        return {"depth": self.depth or depth, "width": self.width or width, "heads": self.heads or heads}

    def make(self, **fitted: Any) -> DiT:
        """The network with random weights; `fitted` are the arguments that follow from its latents and conditions."""
        own = self.model_dump(exclude={"size", "depth", "width", "heads"})
        return DiT(**own, **self.sizes, **fitted)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> DiTSettings:
        width, heads = self.sizes["width"], self.sizes["heads"]
        if width % heads or width // heads % 2 or width // heads < 16:
            raise ValueError(f"width={width}, heads={heads}: width / heads must be even and at least 16")
        return self


class UNetSettings(Settings):
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of the levels; each but the last halves height and width and has attention."""
    layers_per_level: int = Field(2, ge=1)
    """Residual blocks a level."""
    head_width: int = Field(64, ge=4)
    """Width of an attention head."""
    norm_groups: int = Field(32, ge=1)
    """Groups of the group norms; both this and `head_width` must divide every width."""

    def make(self, **fitted: Any) -> UNet:
        """As `DiTSettings.make`."""
        return UNet(**self.model_dump(), **fitted)

    @model_validator(mode="after")
    def _groups_and_heads_divide_the_widths(self) -> UNetSettings:
        if any(width % self.norm_groups or width % self.head_width for width in self.widths):
            raise ValueError(f"widths={list(self.widths)}: norm_groups and head_width must divide each")
        return self


def make_network(
    settings: DiTSettings | UNetSettings,
    conditioning: ConditioningSettings,
    objective: ObjectiveSettings,
    manifest: Manifest,
) -> Network:
    """The network that fits the latents, with random weights. Raises InputError where the latents cannot teach it."""
    if conditioning.kind == "class" and not manifest.classes:
        raise InputError(
            "ldm.conditioning.kind=class, but the latents' manifest lists no class: the videos have no labels. Label "
            "them in their shards and encode again, or choose text or none"
        )
    told = {
        "text_width": manifest.text_width if conditioning.kind == "text" else None,
        "text_tokens": manifest.text_tokens,
        "class_names": list(manifest.classes) if conditioning.kind == "class" else None,
        "first_frame": conditioning.first_frame > 0,
    }
    latents = {
        "latent_channels": manifest.shape[0],
        "sample_size": manifest.shape[1:],
        "latents_mean": manifest.latents_mean,
        "latents_std": manifest.latents_std,
    }
    common = {**told, **latents, "objective": objective.model_dump(mode="json")}
    return settings.make(**common)


def load_network(folder: Path) -> Network:
    """A trained network of a run, in eval mode. Raises InputError that names the command which makes it."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no trained LDM; make it with: {command_line('train_ldm')}")
    name = read_json(folder / "config.json").get("_class_name")
    if name not in NETWORKS:
        raise InputError(f"{folder / 'config.json'}: _class_name={name!r}; allowed are {', '.join(NETWORKS)}")
    return NETWORKS[name].from_pretrained(folder).eval().requires_grad_(False)
