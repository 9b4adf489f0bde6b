"""Compilation of a network's blocks by torch.compile: one graph for each kind of block and each shape of its inputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

# Blocks share their code, and differ in size, in what they attend to, and by bucket in their inputs; training,
# validation and sampling differ in gradients and batch. torch's limit of 8 graphs for the same code is meant for code
# whose shapes vary without end: beyond it the block runs uncompiled.
GRAPHS_OF_A_BLOCK = 512


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block, in place. Shapes are fixed in each graph, so that a new one is compiled anew, once."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, GRAPHS_OF_A_BLOCK)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, GRAPHS_OF_A_BLOCK)
    for block in blocks:
        block.compile(dynamic=False)
