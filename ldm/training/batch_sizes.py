"""Samples per micro-step and rank of each bucket of latents: one number for all, or as many as `tokens_per_batch` has
room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ldm.networks.network import Network
from ldm.training.settings import LDMSettings
from odvae.running.errors import InputError


def batch_sizes(
    settings: LDMSettings, network: Network | Any, shapes: Mapping[str, tuple[int, int, int, int]]
) -> dict[str, int]:
    """Samples per micro-step and rank of each bucket, whose latents have these shapes (c, t, h, w).

    A function of the settings and shapes alone, so that the samples of a step do not depend on what came before.
    Raises InputError for latents that the network's patches do not divide, and for a bucket of which not even one
    sample has room in `tokens_per_batch`.
    """
    tokens = {name: _tokens(network, shape) for name, shape in shapes.items()}
    room = settings.tokens_per_batch
    if room is None:
        return dict.fromkeys(tokens, settings.optimization.batch_size)
    largest = max(tokens, key=lambda name: tokens[name])
    if tokens[largest] > room:
        raise InputError(
            f"ldm.tokens_per_batch={room}: a sample of the bucket {largest} has {tokens[largest]} tokens; allowed are "
            f"{tokens[largest]} and more"
        )
    return {name: room // count for name, count in tokens.items()}


def _tokens(network: Network, shape: tuple[int, int, int, int]) -> int:
    t, h, w = network.token_grid(torch.empty(1, *shape, device="meta"))
    return t * h * w
