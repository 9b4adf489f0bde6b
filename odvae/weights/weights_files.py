"""Weights files and the other files of a model folder: reading them, and detecting incomplete ones."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

from odvae.running.errors import InputError
from odvae.running.files import parse_json
from odvae.running.text import check_is_file, decode_text, why_no_file

PICKLED = (".bin", ".ckpt", ".pt", ".pth")  # what torch.save wrote
WEIGHTS = (".safetensors", *PICKLED)

_LFS_POINTER = b"version https://git-lfs"
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml)", re.IGNORECASE)
_AGAIN = "copy or download it again"
_MOST_HEADER = 100_000_000  # bytes, as in the safetensors library


def read_weights(path: str | Path, what: str = "") -> Any:
    """Read a .safetensors or torch.save file: tensors by name, or other plain values and tensors.

    torch.save files are memory-mapped, so that an unused part (an optimizer's state) is never read. Raises InputError,
    which names the file by `what` and its path, if it is missing, incomplete, or contains Python objects.
    """
    path, named = Path(path), f"{what} {path}".strip()
    check_is_file(path, what)
    if problem := why_incomplete(path):
        raise InputError(f"{named} {problem}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise  # a fault of the disk, not of the file's content
    except Exception as error:  # torch raises various types for a broken file: UnpicklingError, EOFError, ...
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{named} contains a Python object ({refused[1]}), not only tensors. Loading it could run code, so it "
                "is refused; save its tensors as .safetensors first"
            ) from None
        raise InputError(f"{named} cannot be read as a PyTorch checkpoint: {str(error).splitlines()[0]}") from None


def why_incomplete(path: Path) -> str:
    """Why a file of a model's folder cannot be read, as the end of a sentence ("is empty"); empty if it can be.

    Reads the size and the beginning of the file, and all of a JSON file, but not the weights.
    """
    if problem := why_no_file(path):
        return problem
    size = path.stat().st_size
    with open(path, "rb") as file:
        beginning = file.read(1024)
    if not beginning:
        return f"is empty: {_AGAIN}"
    if beginning.startswith(_LFS_POINTER):
        return (
            "is a Git LFS pointer, not the file itself: run `git lfs install` and `git lfs pull` in its repository, or "
            "download the file"
        )
    if path.suffix != ".json" and _WEB_PAGE.match(beginning):
        return f"is a web page, as from a failed download: {_AGAIN}"
    if path.suffix == ".safetensors":
        return _why_no_safetensors(path, size, beginning)
    if path.suffix in PICKLED:
        return _why_no_pickled(path, beginning)
    return _why_no_json(path) if path.suffix == ".json" else ""


def _why_no_safetensors(path: Path, size: int, beginning: bytes) -> str:
    invalid = "is not a safetensors file (its header cannot be read)"
    if len(beginning) < 8:
        return f"is truncated (it has {size} bytes): {_AGAIN}"
    (length,) = struct.unpack("<Q", beginning[:8])
    if not 2 <= length <= _MOST_HEADER:
        return invalid
    if 8 + length > size:
        return f"is truncated (it has {size} bytes, its header alone {8 + length}): {_AGAIN}"
    with open(path, "rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        tensors = [value for name, value in json.loads(text).items() if name != "__metadata__"]
        needed = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):  # also of infinity
        return invalid
    if needed > size:
        return f"is truncated (it has {size} of {needed} bytes): {_AGAIN}"
    return f"is not a complete safetensors file ({size} bytes, {needed} by its header)" if needed < size else ""


def _why_no_pickled(path: Path, beginning: bytes) -> str:
    if beginning.startswith(b"PK"):
        complete = zipfile.is_zipfile(path)  # a zip file's directory is at its end
        return "" if complete else f"is truncated (it ends after {path.stat().st_size} bytes): {_AGAIN}"
    if beginning.startswith(b"\x80") or beginning[257:262] == b"ustar":  # what torch.save wrote before version 1.6
        return ""
    return "is not a torch.save file (it begins with other bytes)"


def _why_no_json(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(b"\xef\xbb\xbf"):
        return "begins with a byte order mark: save it as UTF-8 without"
    try:
        parse_json(decode_text(data, ""), "")
    except InputError as error:
        return str(error).strip()
    return ""
