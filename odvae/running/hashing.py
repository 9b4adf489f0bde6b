"""Hashes: of a model's weights, whatever file they came from, and of files."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import torch
from torch import nn

from odvae.running.files import read_json, write_json


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


class HashCache:
    """Hashes each file once; again only where its size or time of change is another than then.

    A changed bit under an unchanged time goes unseen: who must know hashes anew (`fingerprints.file_fingerprint`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list] = read_json(path) if path.is_file() else {}

    def sha256(self, file: Path) -> str:
        key, state = str(file.resolve()), [file.stat().st_size, file.stat().st_mtime_ns]
        known = self.known.get(key)
        if known is not None and known[:2] == state:
            return known[2]
        digest = file_fingerprint(file)
        self.known[key] = [*state, digest]
        return digest

    def save(self) -> None:
        """Keep it for next time; in a folder that may not be written everything is hashed again then."""
        with contextlib.suppress(OSError):
            write_json(self.path, self.known)
