"""Cache of real videos' features, keyed by a hash of everything they depend on, so that each set is computed once.

A file's header describes its features: network and its sha256, protocol, clips. The cache folder can be given to
another experiment (`eval_ldm.reference`), which raises an error with the differences where the descriptions differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from odvae.running.distributed import decide_on_main_process, wait_for_everyone
from odvae.running.errors import InputError
from odvae.running.files import atomic_file
from odvae.shards.samples import Sample


def describe_clips(clips: Sequence[tuple[Sample, int]]) -> dict:
    """The count of (video, first frame) pairs, and a hash of their keys, file sizes and first frames."""
    digest = hashlib.sha256()
    for sample, start in clips:
        sizes = sorted((extension, size) for extension, (_, size, _) in sample.members.items())
        digest.update(json.dumps([sample.key, sizes, start]).encode())
    return {"count": len(clips), "clips_sha256": digest.hexdigest()}


def cached_features(folder: Path, description: dict, measure: Callable[[], np.ndarray]) -> np.ndarray:
    """Features (n, d) that match `description`: read from `folder`, or computed by all ranks and written there."""
    state, path = PartialState(), path_in(folder, description)
    if decide_on_main_process(path.is_file):
        return read_features(path, description)
    features = measure()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(save({"features": features}, metadata={"description": json.dumps(description)}))
    wait_for_everyone()
    return features


def given_features(folder: Path, description: dict) -> np.ndarray:
    """Features (n, d) that match `description`, from a folder that must have them.

    Raises InputError where there are none; it lists in what the most similar features of the folder differ.
    """
    path = path_in(folder, description)
    if not path.is_file():
        others = sorted(folder.glob(f"{description['kind']}_*.safetensors"))
        if not others:
            raise InputError(f"eval_ldm.reference={folder}: no {description['kind']} features there")
        path = min(others, key=lambda other: len(differences(read_description(other), description)))
    return read_features(path, description)


def path_in(folder: Path, description: dict) -> Path:
    """The file of the features that match `description`."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    return folder / f"{description['kind']}_{digest[:20]}.safetensors"


def read_features(path: Path, description: dict) -> np.ndarray:
    """The features (n, d) in a file. Raises InputError where it is unreadable or does not match `description`."""
    found = differences(read_description(path), description)
    if found:
        raise InputError(f"{path} holds features of another protocol:\n" + "\n".join(found))
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor("features")


def read_description(path: Path) -> dict:
    """The description in a file's header. Raises InputError where the file cannot be read or has none."""
    try:
        with safe_open(path, framework="numpy") as file:
            description = json.loads((file.metadata() or {}).get("description", "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as features: {error}; remove it and evaluate again") from None
    if not isinstance(description, dict):
        raise InputError(f"{path} has no description of its features; remove it and evaluate again")
    return description


def differences(found: dict, needed: dict) -> list[str]:
    """One line for each key in which two descriptions differ."""
    return [
        f"  {key}: the file has {found.get(key)!r}, this evaluation needs {needed.get(key)!r}"
        for key in sorted(found.keys() | needed.keys())
        if found.get(key) != needed.get(key)
    ]
