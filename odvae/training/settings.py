"""Settings of optimization, of both networks that are trained."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from odvae.running.settings import MayChange, Settings

Tracker = Literal["none", "wandb", "tensorboard"]
Precision = Literal["auto", "bf16", "fp32"]


class OptimizationSettings(Settings):
    renamed_keys: ClassVar = {
        "accumulate": "gradient_accumulation_steps",
        "decay": "lr_schedule",
        "decay_start": "lr_decay_start",
        "max_skipped": "max_nonfinite_steps",
        "keep_checkpoints": "checkpoints_total_limit",
    }

    steps: Annotated[int, MayChange] = Field(1000, ge=1)
    """Optimizer steps in all."""
    batch_size: Annotated[int, MayChange] = Field(8, ge=1)
    """Samples a micro-step on each rank."""
    gradient_accumulation_steps: Annotated[int, MayChange] = Field(1, ge=1)
    """Micro-steps a step: the global batch is ranks * gradient_accumulation_steps * batch_size."""
    optimizer: str = "adamw"
    """Any optimizer timm's factory knows by name; muon, nmuon, adamuon and nadamuon are `odvae.training.muon`'s.
    "nadamuon" learns far more a step than "adamw" (LOG.md)."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear rise from 0."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: stay, or fall to 0 along a cosine that starts at `lr_decay_start`."""
    lr_decay_start: float = Field(0.0, ge=0, lt=1)
    """Share of the steps after which a cosine decay begins."""
    betas: tuple[float, float] | None = None
    """Decay rates of the first and second moment; null: the optimizer's own. Optimisers without them refuse."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, decoupled except in optimizers that know no other ("adam"); biases and norm gains have none."""
    grad_clip: float = Field(1.0, gt=0)
    """The gradient's norm is clipped to this."""
    max_nonfinite_steps: Annotated[int, MayChange] = Field(10, ge=0)
    """A step with a gradient that is not finite is skipped and counted; more than this many in a row end the run."""
    precision: Precision = "auto"
    """Autocast to bf16, or none; auto: bf16 on a GPU that has it, fp32 elsewhere (a CPU without matrix units for bf16
    is slower with it)."""
    compile: Annotated[bool, MayChange] = False
    """torch.compile the network's blocks: minutes at the start, faster steps after."""
    gradient_checkpointing: Annotated[bool, MayChange] = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay a step of the averaged weights, which are the ones saved, validated and sampled; it warms up from 0."""
    extra_ema_decays: tuple[float, ...] = ()
    """Decays of further averages, saved beside the first (the LDM's in `ema_DECAY/` folders)."""
    log_every: Annotated[int, MayChange] = Field(10, ge=1)
    """Steps between rows of metrics.jsonl."""
    validate_every: Annotated[int, MayChange] = Field(1000, ge=1)
    """Steps between validations on held-out videos (there is always one at the end)."""
    checkpoint_every: Annotated[int, MayChange] = Field(500, ge=1)
    """Steps between checkpoints (there is always one at the end, and one at Ctrl-C or SIGTERM)."""
    checkpoints_total_limit: Annotated[int, MayChange] = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""
