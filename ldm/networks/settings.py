"""Settings of the networks, their conditioning, and the text encoder."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from odvae.running.settings import Settings

AttentionBackend = Literal["sdpa", "flash", "flash3", "flash4", "cudnn", "efficient", "math", "xformers"]
LEARNED = "learned"
# Peebles & Xie 2023, table 1: (depth, width, heads).
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


class DiTSettings(Settings):
    renamed_keys: ClassVar[dict[str, str]] = {"attention: factorised": "attention: factorized"}

    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent positions a token covers, along time, height and width."""
    size: Literal["S", "B", "L", "XL"] = "S"
    """Depth, width and heads from the DiT paper: S 12, 384, 6; B 12, 768, 12; L 24, 1024, 16; XL 28, 1152, 16. Heads
    are 64 wide but for XL's, of 72, which GPU kernels of attention pad: heads=18 makes them 64, heads=9 makes them
    128."""
    width: int | None = Field(None, ge=16)
    """Width of the transformer; null: as `size` gives it."""
    depth: int | None = Field(None, ge=1)
    """Number of blocks; null: as `size` gives it."""
    heads: int | None = Field(None, ge=1)
    """Attention heads; width / heads must be even and at least 16; null: as `size` gives it."""
    attention: Literal["full", "factorized"] = "full"
    """Full: every block attends to all tokens. Factorized: blocks attend alternately over space and over time (Latte),
    which is cheaper for long videos."""
    modulation: Literal["block", "single"] = "block"
    """Where the adaLN shifts, scales and gates come from. Block: from a layer in each block (DiT). Single: one layer
    computes them for all blocks, each of which adds a learned table (PixArt-alpha's adaLN-single): with text, 335 of
    the 938 million parameters of XL become 12."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLPs divided by the width."""
    rope_theta: float = Field(10000.0, gt=1)
    """Base of the RoPE frequencies; a smaller base gives higher frequencies, for small grids."""

    @property
    def sizes(self) -> dict[str, int]:
        depth, width, heads = SIZES[self.size]
        return {"depth": self.depth or depth, "width": self.width or width, "heads": self.heads or heads}

    @property
    def arguments(self) -> dict[str, Any]:
        """The network's arguments that are settings; the others follow from its latents and conditioning."""
        return {**self.model_dump(exclude={"size", "depth", "width", "heads"}), **self.sizes}

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> DiTSettings:
        width, heads = self.sizes["width"], self.sizes["heads"]
        if width % heads or width // heads % 2 or width // heads < 16:
            raise ValueError(f"width={width}, heads={heads}: width / heads must be even and at least 16")
        return self


class UNetSettings(Settings):
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels per level; every level but the last halves height and width and has attention."""
    layers_per_level: int = Field(2, ge=1)
    """Residual blocks per level."""
    head_width: int = Field(64, ge=4)
    """Width of an attention head."""
    norm_groups: int = Field(32, ge=1)
    """Groups of the group norms; both this and `head_width` must divide every width."""

    @property
    def arguments(self) -> dict[str, Any]:
        """As `DiTSettings.arguments`."""
        return self.model_dump()

    @model_validator(mode="after")
    def _groups_and_heads_divide_the_widths(self) -> UNetSettings:
        if any(width % self.norm_groups or width % self.head_width for width in self.widths):
            raise ValueError(f"widths={list(self.widths)}: norm_groups and head_width must divide each")
        return self


class LoRASettings(Settings):
    rank: int = Field(16, ge=1)
    """Rank of the two matrices that are trained for each layer."""
    alpha: float | None = Field(None, gt=0)
    """Their product is scaled by alpha / rank; null: by 1."""
    targets: tuple[str, ...] = ()
    """Layers that get an adapter, by the ends of their names (DiT: qkv, q, kv, out, fc1, fc2, modulation, ...; or
    diffusers' to_q, to_k, to_v, to_out.0); none given: those of the attention."""


class ConditioningSettings(Settings):
    renamed_keys: ClassVar[dict[str, str]] = {"dropout": "cond_dropout"}

    kind: Literal["text", "class", "none"] = "text"
    """What the network is conditioned on: the caption's embedding, the label's class, or nothing."""
    cond_dropout: float = Field(0.1, ge=0, le=1)
    """Share of samples trained with the empty caption or no class, which classifier-free guidance needs."""
    first_frame: float = Field(0.0, ge=0, le=1)
    """Share of samples trained with their first latent frame (the latent of an image) as a condition, so that the
    network can also animate images; 0: it cannot."""


class TextSettings(Settings):
    encoder: str = LEARNED
    """Folder or hub name of a transformers text encoder (T5, CLIP, BERT, ...), or the folder of an exported pipeline
    that has one; or "learned": a small one is trained on the training captions before they are encoded, without a
    download."""
    max_tokens: int = Field(16, ge=2)
    """Captions are truncated or padded to this many tokens."""
    width: int = Field(64, ge=16, multiple_of=16)
    """Width of a learned encoder."""
    steps: int = Field(200, ge=1)
    """Training steps of a learned encoder."""
