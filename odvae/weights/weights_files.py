"""Files that hold weights, and those beside them in a model's folder: whether one is whole, and what is in it."""

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
    """What a .safetensors file or one of torch.save holds: tensors by name, or what else of plain values and tensors.

    torch.save's are mapped, so that what nobody asks for (an optimizer's state) is never read. Raises InputError that
    names the file (as `what` and its path) where it is missing, not whole, or holds more than plain values and tensors.
    """
    path, named = Path(path), f"{what} {path}".strip()
    check_is_file(path, what)
    if problem := why_not_whole(path):
        raise InputError(f"{named} {problem}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise  # the disk, not the file's content
    except Exception as error:  # torch has no one type for a broken file: Unpickling-, Runtime-, EOF-, ValueError, ...
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{named} contains a Python object ({refused[1]}), not only tensors. Loading it could run code, so it "
                "is refused; save its tensors as .safetensors first"
            ) from None
        raise InputError(f"{named} cannot be read as a PyTorch checkpoint: {str(error).splitlines()[0]}") from None


def why_not_whole(path: Path) -> str:
    """What keeps a file of a model's folder from being read, as the end of a sentence ("is empty"); empty: nothing.

    It reads the file's beginning and its size, JSON whole; not the weights.
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
            "is the pointer that Git LFS keeps in place of the file: run `git lfs install` and `git lfs pull` in its "
            "repository, or download the file itself"
        )
    if path.suffix != ".json" and _WEB_PAGE.match(beginning):
        return f"is a web page, as a download that failed leaves: {_AGAIN}"
    if path.suffix == ".safetensors":
        return _why_no_safetensors(path, size, beginning)
    if path.suffix in PICKLED:
        return _why_no_pickled(path, beginning)
    return _why_no_json(path) if path.suffix == ".json" else ""


def _why_no_safetensors(path: Path, size: int, beginning: bytes) -> str:
    none = "is no safetensors file (its header cannot be read)"
    if len(beginning) < 8:
        return f"is cut short (it has {size} bytes): {_AGAIN}"
    (length,) = struct.unpack("<Q", beginning[:8])
    if not 2 <= length <= _MOST_HEADER:
        return none
    if 8 + length > size:
        return f"is cut short (it has {size} bytes, its header alone {8 + length}): {_AGAIN}"
    with open(path, "rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        tensors = [value for name, value in json.loads(text).items() if name != "__metadata__"]
        needed = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return none
    if needed > size:
        return f"is cut short (it has {size} of {needed} bytes): {_AGAIN}"
    return f"is no whole safetensors file ({size} bytes, {needed} by its header)" if needed < size else ""


def _why_no_pickled(path: Path, beginning: bytes) -> str:
    if beginning.startswith(b"PK"):
        whole = zipfile.is_zipfile(path)  # its table of contents is at its end
        return "" if whole else f"is cut short (it ends after {path.stat().st_size} bytes): {_AGAIN}"
    if beginning.startswith(b"\x80") or beginning[257:262] == b"ustar":  # what torch.save wrote before version 1.6
        return ""
    return "is no file of torch.save (it begins with other bytes)"


def _why_no_json(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(b"\xef\xbb\xbf"):
        return "begins with a byte order mark: save it as UTF-8 without"
    try:
        parse_json(decode_text(data, ""), "")
    except InputError as error:
        return str(error).strip()
    return ""
