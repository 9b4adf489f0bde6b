"""Settings of the latent diffusion model and its training."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from ldm.diffusion.settings import ObjectiveSettings
from ldm.networks.settings import AttentionBackend, ConditioningSettings, DiTSettings, LoRASettings, UNetSettings
from odvae.running.resume_check import MayChange
from odvae.running.settings import Settings
from odvae.training.settings import OptimizationSettings


def _default_dit(given: dict[str, Any]) -> DiTSettings | None:
    return None if given.get("unet") or given.get("init_from") else DiTSettings()


class AlignmentSettings(Settings):
    encoder: str
    """Folder or hub name of an image encoder of timm or transformers (DINOv2, CLIP, ViT, ConvNeXt, ...), with
    safetensors."""
    image_size: int | None = Field(None, ge=8)
    """Side of the encoder's input in pixels; null: the one it was trained with."""
    block: int = Field(8, ge=1)
    """Block of the DiT after which its tokens are aligned, counted from 1 (REPA: 8 of 24 or 28)."""
    hidden_width: int = Field(2048, ge=1)
    """Hidden width of the projection, an MLP of three layers."""
    weight: float = Field(0.5, gt=0)
    """Weight of the cosine distance."""


class LDMSettings(Settings):
    renamed_keys: ClassVar[dict[str, str]] = {
        "network": "dit or ldm.unet, whichever section is given",
        "model": "dit",
        "show_every": "sample_every",
        "shown": "num_visualized",
    }

    init_from: str | None = None
    """Fine-tuning: a trained network to start from, as a run's folder, its ldm folder, or the folder of an exported
    pipeline. The latents must be those of its VAE (`vae.pretrained`) and of its text encoder (`text.encoder`)."""
    lora: LoRASettings | None = None
    """Fine-tuning: train only a LoRA adapter of the network in `init_from`; null: all weights."""
    unet: UNetSettings | None = None
    """diffusers' 3D UNet; where it is given, it is trained in place of the DiT."""
    dit: DiTSettings | None = Field(default_factory=_default_dit)
    """The diffusion transformer; with `init_from`, the network's own sizes are taken where neither is given."""
    conditioning: ConditioningSettings = ConditioningSettings()
    """Conditioning: text, class or none; optional first frame."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """Prediction target, noise levels and loss weights."""
    optimization: OptimizationSettings = OptimizationSettings()
    """Optimizer, learning rate, EMA, precision, logging and checkpoints."""
    tokens_per_batch: int | None = Field(None, ge=1)
    """Tokens per micro-step and rank, in place of `optimization.batch_size`: a batch has as many samples of its bucket
    as have no more tokens together, so that a step on short clips or images takes as long as one on long clips. The
    ranks times gradient_accumulation_steps must not change on resume."""
    alignment: AlignmentSettings | None = None
    """Alignment of the DiT's features with a frozen image encoder's (REPA, docs/regularizers.md); null: none."""
    attention_backend: Annotated[AttentionBackend, MayChange] = "sdpa"
    """Kernel of attention. sdpa: the one that torch chooses; one of torch's, tried out at the start: flash
    (FlashAttention 2), flash3 and flash4 (FlashAttention 3 and 4, where they are installed and torch can activate
    them), cudnn, efficient, math (plain products, much memory); xformers: of that package. FlashAttention takes no
    mask: torch chooses the kernel of the attention to text."""
    peak_tflops: Annotated[float | None, MayChange] = Field(None, gt=0)
    """Published peak of one device, TFLOP/s, for `mfu` in metrics.jsonl; null: that of odvae/training/devices.yaml in
    bf16, and no `mfu` for other devices and fp32. `mfu_of_matmul_rate` is against the rate of large matrix products,
    which is measured at the start."""
    validation_clips: int = Field(256, ge=1)
    """Held-out clips in the validation loss (all, if there are fewer)."""
    sample_every: Annotated[int, MayChange] = Field(5000, ge=1)
    """Steps between samples of fixed held-out conditions, written to `videos/`, `strips/` and the tracker."""
    num_visualized: int = Field(4, ge=1)
    """Number of these samples."""
    workers: Annotated[int, MayChange] = Field(0, ge=0)
    """Data loading processes per rank; 0 reads latents in the training process."""

    @model_validator(mode="after")
    def _there_is_one_network_that_supports_the_options(self) -> LDMSettings:
        if (self.dit is None) == (self.unet is None) and not (self.init_from and self.dit is None):
            raise ValueError("exactly one network is trained: give either dit or unet")
        if self.lora is not None and self.init_from is None:
            raise ValueError("lora is an adapter of a trained network: name it in init_from")
        for name in ("compile", "gradient_checkpointing"):
            if self.unet is not None and getattr(self.optimization, name):
                raise ValueError(f"optimization.{name}=true is for ldm.dit: diffusers' 3D UNet does not support it")
        return self

    @model_validator(mode="after")
    def _the_last_step_is_trained(self) -> LDMSettings:
        if self.objective.zero_terminal_snr and self.objective.timestep_sampling != "uniform":
            raise ValueError(
                "ldm.objective.zero_terminal_snr=true needs ldm.objective.timestep_sampling=uniform: logit-normal "
                "times never come near the last step, from which sampling starts"
            )
        return self

    @model_validator(mode="after")
    def _one_setting_determines_the_batch(self) -> LDMSettings:
        if self.tokens_per_batch is None:
            return self
        if self.optimization.batch_size != OptimizationSettings.model_fields["batch_size"].default:
            raise ValueError(
                f"tokens_per_batch={self.tokens_per_batch} and ldm.optimization.batch_size="
                f"{self.optimization.batch_size} both say how many samples a batch has: give one of them"
            )
        if self.optimization.shuffle_parts > 1:
            raise ValueError(
                f"tokens_per_batch gives buckets batches of different sizes, which ldm.optimization.shuffle_parts="
                f"{self.optimization.shuffle_parts} cannot divide alike: set shuffle_parts=1, or give batch_size"
            )
        return self

    @model_validator(mode="after")
    def _the_aligned_block_exists(self) -> LDMSettings:
        if self.alignment is None:
            return self
        if self.unet is not None:
            raise ValueError("alignment is for ldm.dit: a UNet's features have other grids than its tokens")
        if self.dit is not None and self.alignment.block > (depth := self.dit.sizes["depth"]):
            raise ValueError(f"ldm.alignment.block={self.alignment.block}: the DiT has {depth} blocks")
        return self

    @property
    def network(self) -> DiTSettings | UNetSettings | None:
        """The settings of the network that is trained; None where `init_from` alone determines them."""
        return self.unet if self.unet is not None else self.dit
