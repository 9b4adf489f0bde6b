"""Activation checkpointing: what the backward pass computes again instead of keeping it in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

ATEN = torch.ops.aten

# Operations whose results selective checkpointing keeps: nearly all of a step's FLOPs. Everything else takes little
# more than the time to read and write its tensors.
KEPT = frozenset(
    {
        ATEN.convolution.default,
        ATEN.mm.default,
        ATEN.addmm.default,
        ATEN.bmm.default,
        ATEN._scaled_dot_product_flash_attention.default,
        ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        ATEN._scaled_dot_product_efficient_attention.default,
        ATEN._scaled_dot_product_cudnn_attention.default,
    }
)


def enable_checkpointing(network: Any, kind: bool | Literal["selective"]) -> None:
    """Let a network of diffusers' kind recompute activations: all of each block (True), what is cheap, or nothing."""
    if kind == "selective":
        network.enable_gradient_checkpointing(checkpoint_selectively)
    elif kind:
        network.enable_gradient_checkpointing()


def checkpoint_selectively(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, of which the backward pass computes again all but the operations in KEPT."""
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)


def _policy(_context: object, operation: object, *_arguments: object, **_options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
