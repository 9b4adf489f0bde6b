"""Identities: of a model's weights, whatever file they came from, and of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a model's tensors, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
