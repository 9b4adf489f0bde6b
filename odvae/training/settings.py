"""Optimization settings of both trainings: optimizer, learning rate schedule, precision, EMA, logging, checkpoints."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from odvae.running.resume_check import MayChange
from odvae.running.settings import Precision, Settings

Tracker = Literal["none", "wandb", "tensorboard"]


class DDPSettings(Settings):
    """Of torch's DistributedDataParallel, where several processes train without FSDP2."""

    gradient_as_bucket_view: bool = True
    """Keep gradients in the buckets that are exchanged, in place of copying them there and back: 4 bytes per parameter
    less memory."""
    bucket_cap_mb: int = Field(25, ge=1)
    """Size of a bucket in MiB: gradients are exchanged while the backward pass goes on, a bucket at a time. Larger ones
    suit networks with long delays between machines; the last is exchanged when nothing is left to compute."""
    find_unused_parameters: bool = False
    """Look in each step for parameters that have no gradient. Needed where a network of your own has such ones, on
    which DDP otherwise ends with an error; it takes time, and no network of this project needs it."""


class OptimizationSettings(Settings):
    renamed_keys: ClassVar[dict[str, str]] = {
        "accumulate": "gradient_accumulation_steps",
        "decay": "lr_schedule",
        "decay_start": "lr_decay_start",
        "max_skipped": "max_nonfinite_steps",
        "keep_checkpoints": "checkpoints_total_limit",
    }

    steps: Annotated[int, MayChange] = Field(1000, ge=1)
    """Number of optimizer steps."""
    batch_size: Annotated[int, MayChange] = Field(8, ge=1)
    """Samples per micro-step and rank."""
    gradient_accumulation_steps: Annotated[int, MayChange] = Field(1, ge=1)
    """Micro-steps (forward and backward passes) per optimizer step. The global batch size is ranks *
    gradient_accumulation_steps * batch_size and must not change on resume."""
    optimizer: str = "adamw"
    """Name of any optimizer of timm's create_optimizer_v2; muon, nmuon, adamuon and nadamuon are this project's own
    implementations (`odvae.training.muon`). In an early form of the demo's image VAE, 150 steps reach 27.4 dB PSNR with
    "nadamuon" and 23.7 dB with "adamw" (LOG.md, 2026-11-23)."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up of the learning rate from 0."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or cosine decay to 0 from `lr_decay_start` on."""
    lr_decay_start: float = Field(0.0, ge=0, lt=1)
    """Share of the steps after which the cosine decay starts."""
    betas: tuple[float, float] | None = None
    """Betas (decay rates of the moments); null: the optimizer's defaults. An error for optimizers without betas."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, decoupled except for optimizers without it ("adam"); not applied to biases and norm gains."""
    grad_clip: float = Field(1.0, gt=0)
    """Maximum norm of the gradient."""
    max_nonfinite_steps: Annotated[int, MayChange] = Field(10, ge=0)
    """A step with a gradient that is not finite is skipped and counted; more than this many in a row end the run."""
    precision: Precision = "auto"
    """Autocast to bf16, or none (fp32); auto: bf16 on a GPU that supports it, otherwise fp32 (bf16 is slower on CPUs
    without bf16 matrix units)."""
    sharded_precision: Literal["fp32", "bf16"] = "fp32"
    """Under FSDP2, the precision in which a block's weights are gathered and used; bf16 halves the traffic and needs
    precision=bf16. Each rank keeps its shards in fp32, and gradients are summed in fp32. Without FSDP2 it has no
    effect, which is said at the start."""
    ddp: Annotated[DDPSettings, MayChange] = DDPSettings()
    """How gradients are exchanged between processes; one process and FSDP2 do not use it."""
    tf32: Annotated[bool | None, MayChange] = None
    """Whether a GPU rounds the inputs of fp32 convolutions and matrix products to TF32 (10 bits, about 8 times as
    fast); null: torch's default, convolutions only. With precision=bf16 few products are left in fp32."""
    cudnn_benchmark: Annotated[bool, MayChange] = False
    """Let cuDNN try its kernels for each new size of a convolution and keep the fastest: slower first steps, and other
    runs may round differently."""
    compile: Annotated[bool, MayChange] = False
    """torch.compile the network's blocks: takes minutes at the start, then steps are faster."""
    gradient_checkpointing: Annotated[bool | Literal["selective"], MayChange] = False
    """Recompute activations in the backward pass. true: all of each block, the least memory and about a third more
    time; selective: only norms, activation functions and the like, which are cheap beside the convolutions, matrix
    products and attention whose results are kept. With compile=true torch does the latter by itself."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """EMA decay per step, with warm-up from 0; the EMA weights are those that are saved, validated and sampled from."""
    extra_ema_decays: tuple[float, ...] = ()
    """Decays of further EMA weights, saved in addition (those of the LDM in folders `ema_DECAY/`)."""
    shuffle: Literal["exact", "blocks"] = "exact"
    """Order of the samples in an epoch: a random one (exact), for disks; or blocks of consecutive samples in a random
    order, mixed within a buffer of several blocks, for storage where random reads are dear. Both are functions of the
    step."""
    shuffle_block: int = Field(512, ge=1)
    """Consecutive samples in a block."""
    shuffle_buffer: int = Field(8192, ge=1)
    """Samples that are mixed, of several blocks: a cache that holds so many reads each block once an epoch."""
    shuffle_parts: int = Field(1, ge=1)
    """Parts of the samples whose blocks are read separately: with the number of nodes, each node reads blocks that no
    other node reads. It must divide the global batch, and cannot change on resume."""
    log_every: Annotated[int, MayChange] = Field(10, ge=1)
    """Steps between rows of metrics.jsonl."""
    validate_every: Annotated[int, MayChange] = Field(1000, ge=1)
    """Steps between validations on held-out videos; the last step is always validated."""
    checkpoint_every: Annotated[int, MayChange] = Field(500, ge=1)
    """Steps between checkpoints; there is also one after the last step, and after Ctrl-C, SIGTERM or SIGUSR1."""
    checkpoints_total_limit: Annotated[int, MayChange] = Field(2, ge=1)
    """Number of newest checkpoints that are kept."""
    async_checkpoints: Annotated[bool, MayChange] = False
    """Let the training go on while a checkpoint is written: it stops only until the state is copied to the memory of
    the host, which needs room for that copy. The last checkpoint, and the one after a signal, are waited for."""

    @model_validator(mode="after")
    def _compiled_blocks_choose_what_is_recomputed(self) -> OptimizationSettings:
        if self.compile and self.gradient_checkpointing == "selective":
            raise ValueError(
                "gradient_checkpointing=selective is for blocks that are not compiled: with compile=true torch "
                "recomputes what is cheap by itself; set gradient_checkpointing=false, or true for the least memory"
            )
        return self
