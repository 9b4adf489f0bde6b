"""sha256 hashes of model weights (independent of the file format) and of files; checksums of bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
import xxhash
from torch import nn


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 of the names, dtypes, shapes and bytes of a model's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def checksum(data: bytes | memoryview) -> int:
    """A 64-bit checksum (XXH3) against damage, at about the speed of memory. It is no defence against intent."""
    return xxhash.xxh3_64_intdigest(data)


def checksum_of_pieces(pieces: Iterable[bytes]) -> int:
    """The `checksum` of bytes that come in pieces."""
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.intdigest()


def joined_fingerprint(hashes: Iterable[str]) -> str:
    """sha256 of the hashes of several things, in this order."""
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
