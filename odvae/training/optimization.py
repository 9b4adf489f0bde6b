"""Optimizer, learning rate schedule, gradient clipping and mixed precision of both trainings."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from odvae.clips.sample_order import SampleOrder
from odvae.clips.samplers import BatchPlan
from odvae.running.distributed import wait_for_everyone
from odvae.running.errors import InputError
from odvae.running.files import make_output_folder
from odvae.running.precision import uses_bf16
from odvae.running.settings import Precision
from odvae.training.muon import Muon
from odvae.training.settings import DDPSettings, OptimizationSettings, Tracker
from odvae.training.tracking import check_tracker_installed, start_tracker

# torch's optimizers that update all weights in one kernel, on CPUs too. Not sgd, whose fused kernel does not support
# FSDP2's shards.
FUSED_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
# This project's implementations; timm's orthogonalize in bf16 on every device, one matrix at a time.
MUON_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "muon": {},
    "nmuon": {"nesterov": True},
    "adamuon": {"adaptive": True},
    "nadamuon": {"adaptive": True, "nesterov": True},
}


def sample_order(settings: OptimizationSettings, plan: BatchPlan) -> SampleOrder:
    """The order of a training's samples. Raises InputError where `shuffle_parts` does not divide the global batch."""
    if settings.shuffle == "exact":
        return SampleOrder()
    if plan.global_batch % settings.shuffle_parts:
        raise InputError(
            f"shuffle_parts={settings.shuffle_parts} does not divide the global batch of {plan.global_batch} samples"
        )
    return SampleOrder(
        settings.shuffle, settings.shuffle_block, settings.shuffle_buffer, settings.shuffle_parts, plan.global_batch
    )


def make_optimizer(model: nn.Module, settings: OptimizationSettings) -> torch.optim.Optimizer:
    """The optimizer named in the settings, with weight decay on matrices only. Raises InputError for an unknown one."""
    name, rate = settings.optimizer.lower(), settings.learning_rate
    groups = weight_decay_groups(model, settings.weight_decay)
    betas: dict[str, Any] = {"betas": settings.betas} if settings.betas else {}
    try:
        if name in MUON_OPTIMIZERS:
            return Muon(groups, rate, **MUON_OPTIMIZERS[name], **betas)
        if name in FUSED_OPTIMIZERS:
            return FUSED_OPTIMIZERS[name](groups, rate, fused=True, **betas)
        return _timm_optimizer(groups, name, rate, betas)
    except (ValueError, AssertionError, TypeError) as error:
        raise InputError(f"optimizer={settings.optimizer!r}, betas={settings.betas}: {error}") from None


def _timm_optimizer(groups: list[dict], name: str, rate: float, betas: dict) -> torch.optim.Optimizer:
    # Imported here since it is slow: timm imports all of its image models, and wandb if that is installed.
    from timm.optim import Lookahead, create_optimizer_v2

    if (muon := name.removeprefix("lookahead_")) in MUON_OPTIMIZERS:
        return Lookahead(Muon(groups, rate, **MUON_OPTIMIZERS[muon], **betas))
    return create_optimizer_v2(groups, name, rate, **betas)


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups of trained parameters without weight decay (biases and norm gains) and with it, as in timm."""
    fixed, decaying = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = parameter.ndim <= 1 or name.endswith(".bias")
            (fixed if vector or not weight_decay else decaying).append(parameter)
    groups = [{"params": fixed, "weight_decay": 0.0}, {"params": decaying, "weight_decay": weight_decay}]
    return [group for group in groups if group["params"]]


def learning_rate_at(step: int, settings: OptimizationSettings) -> float:
    """Learning rate after `step` completed steps: linear warm-up, then constant or cosine decay to 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return settings.learning_rate
    start = max(settings.warmup_steps, int(settings.lr_decay_start * settings.steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, settings.steps - start)))
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)


def clipped_step(
    optimizer: torch.optim.Optimizer | AcceleratedOptimizer, parameters: Iterable[nn.Parameter], max_norm: float
) -> Tensor:
    """Clip the gradient's norm to `max_norm` and take an optimizer step; returns the norm before clipping.

    If the gradient is not finite, the step is skipped: weights, moments and step counts do not change. torch's fused
    optimizers do both on the device; other optimizers synchronize with a GPU.
    """
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if isinstance(norm, DTensor):  # under FSDP2
        norm = norm.full_tensor()
    finite = torch.isfinite(norm)
    if inner.defaults.get("fused"):  # the attributes that torch's GradScaler sets
        inner.found_inf, inner.grad_scale = (~finite).float(), (norm / max_norm).clamp(min=1)
        optimizer.step()
    elif finite:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        optimizer.step()
    return norm


def make_accelerator(
    precision: Precision,
    tracker: Tracker,
    folder: Path,
    name: str,
    sharded_precision: Literal["fp32", "bf16"] = "fp32",
    ddp: DDPSettings | None = None,
) -> Accelerator:
    """An Accelerator for one training, with its tracker started. Raises InputError where the tracker cannot be, and for
    weights that FSDP2 gathers in bf16 in a training that is not in bf16.
    """
    check_tracker_installed(tracker)
    bf16 = uses_bf16(precision, PartialState().device)
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no",
        # Otherwise that of the launch, by which `backward` would divide the loss once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(**(ddp or DDPSettings()).model_dump())],
        log_with=None if tracker == "none" else tracker,
        project_dir=str(folder),
    )
    if accelerator.is_fsdp2:
        accelerator.state.fsdp_plugin.mixed_precision_policy = sharded_policy(sharded_precision, bf16)
    if accelerator.is_main_process:
        make_output_folder(folder)
        for line in unused_launch_options("bf16" if bf16 else "fp32"):
            print(line, flush=True)
        if sharded_precision != "fp32" and not accelerator.is_fsdp2:
            print(f"sharded_precision={sharded_precision} has no effect: this launch has no FSDP2", flush=True)
    wait_for_everyone()
    start_tracker(accelerator, tracker, folder, name)
    return accelerator


def sharded_policy(precision: Literal["fp32", "bf16"], bf16: bool) -> MixedPrecisionPolicy:
    """FSDP2's precision of gathered weights; gradients are reduced in fp32. `bf16`: whether autocast is on.

    Autocast alone determines the precision of what is computed, as without sharding: by default accelerate would
    convert all inputs of the blocks to bf16, including timesteps and the residual stream, and reduce gradients in bf16.
    """
    if precision == "fp32":
        return MixedPrecisionPolicy()
    if not bf16:
        raise InputError(
            "sharded_precision=bf16 needs a training in bf16: set precision=bf16, or sharded_precision=fp32"
        )
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def unused_launch_options(precision: str) -> list[str]:
    """A line for each option of `accelerate launch` that says something else than the settings, which rule."""
    lines = []
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", precision):
        lines.append(f"accelerate launch: mixed precision {launched} is not used; `precision` is, {precision}")
    accumulated = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulated not in ("1", "auto"):
        lines.append(
            f"accelerate launch: gradient accumulation over {accumulated} steps is not used; "
            "the setting `gradient_accumulation_steps` is"
        )
    return lines


@contextlib.contextmanager
def gradients_synced_at(accelerator: Accelerator, model: nn.Module, sync: bool) -> Iterator[None]:
    """Within it, ranks exchange gradients in backward only if `sync`, that is once per step, in the last micro-step."""
    with contextlib.nullcontext() if sync else accelerator.no_sync(model):
        yield
