"""sha256 hashes of model weights (independent of the file format) and of files, with a cache; checksums of bytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
import xxhash
from torch import nn

from odvae.running.errors import InputError
from odvae.running.files import read_json, write_json


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


def file_fingerprint(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _readable(path: Path) -> dict[str, list]:
    """The entries of a cache file; empty if it is damaged, since all files can be hashed again."""
    try:
        found = read_json(path) if path.is_file() else {}
    except InputError:
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: one for key, one in entries if isinstance(one, list) and len(one) == 3 and isinstance(one[2], str)}


class HashCache:
    """Hashes a file only if its size or modification time has changed since it was last hashed.

    A change that keeps both is not noticed; use `file_fingerprint` where that matters.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = _readable(path)

    def sha256(self, file: Path) -> str:
        key, state = str(file.resolve()), [file.stat().st_size, file.stat().st_mtime_ns]
        known = self.known.get(key)
        if known is not None and known[:2] == state:
            return known[2]
        digest = file_fingerprint(file)
        self.known[key] = [*state, digest]
        return digest

    def save(self) -> None:
        """Save the cache. Without write permission, all files are hashed again next time."""
        with contextlib.suppress(OSError):
            write_json(self.path, self.known)
