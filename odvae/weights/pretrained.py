"""Loading of pretrained models from a folder or the Hugging Face hub, with errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odvae.running.commands import command_line
from odvae.running.errors import InputError, is_out_of_memory
from odvae.running.files import read_json
from odvae.running.text import shorten
from odvae.weights.model_sizes import check_sizes
from odvae.weights.weights_files import WEIGHTS, why_incomplete

_CHECKED = (*WEIGHTS, ".json", ".model", ".txt")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SHOWN = 6


@contextlib.contextmanager
def loading(source: str, name: str | Path, what: str, remedy: str = "") -> Iterator[None]:
    """Within it, every error of a library that loads `name` becomes an InputError "SOURCE cannot be loaded as WHAT".

    `source` is the setting with its value, or the folder; `remedy` is a sentence for the end of the message. For a
    folder, the message names incomplete files; for a hub name, it has the reason why the model could not be loaded from
    the hub. Libraries raise errors of many types for broken files.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # raised by libraries in Rust
            raise
        if isinstance(error, InputError) and str(name) in str(error):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        problem = _explain(str(name), error).rstrip(".")
        raise InputError(f"{source} cannot be loaded as {what}: {problem}. {remedy}".rstrip(". ")) from None


def load_model(kind: Any, name: str | Path, source: str, what: str, remedy: str = "", **options: Any) -> Any:
    """`kind.from_pretrained(name, **options)` of diffusers or transformers, with exactly the model's tensors.

    Raises InputError like `loading`, and if tensors are missing or left over, since the config is then another model's.
    """
    with loading(source, name, what, remedy):
        if hasattr(kind, "load_config"):  # a class of diffusers
            check_sizes(kind.load_config(name, **options), name)
        model, found = kind.from_pretrained(name, output_loading_info=True, **options)
    missing, extra = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing or extra:
        parts = [f"{kind.__name__} needs {shorten(missing)}, which the weights do not have"] if missing else []
        parts += [f"it has {shorten(extra)}, which {kind.__name__} does not use"] if extra else []
        problem = f"{'; '.join(parts)}. {_why_others(missing, extra)}"
        raise InputError(f"{source} cannot be loaded as {what}: {problem}. {remedy}".rstrip(". "))
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a model's folder. Raises InputError if it is incomplete or has implausible sizes."""
    path = folder / "config.json"
    if problem := why_incomplete(path):
        raise InputError(f"{path} {problem}")
    config = check_config(read_json(path), str(folder))
    check_sizes(config, path)
    return config


def write_again(folder: Path, command: str) -> str:
    """What to do if the model of a stage is incomplete: the stage can write it again from its last checkpoint."""
    record = next((where / "stage.json" for where in (folder, folder.parent) if (where / "stage.json").exists()), None)
    if record is None:
        return ""
    return f"To have it written again from the last checkpoint, remove {record} and run: {command_line(command)}"


def check_config(config: Any, source: str) -> dict[str, Any]:
    """Return a model's config.json unchanged. Raises InputError if it is not an object."""
    if not isinstance(config, dict):
        raise InputError(f"{source}: config.json must contain keys with values, found a {type(config).__name__}")
    return config


def not_reached(source: str, here: str, there: str, error: BaseException, remedy: str) -> InputError:
    """The error for files that are neither `here` nor can be downloaded from `there`, with the reason and a remedy."""
    return InputError(f"{source}: {here}, and {there} cannot be reached ({root_of(error)}). {remedy}")


def root_of(error: BaseException) -> str:
    """The first line of the original error in a chain of errors; errors without a message are skipped."""
    root, before = error, error.__cause__ or error.__context__
    while before is not None:
        root = before if str(before).strip() else root
        before = before.__cause__ or before.__context__
    first_line = next(iter(str(root).strip().splitlines()), "")
    return f"{type(root).__name__}: {first_line[:300]}" if first_line else type(root).__name__


def broken_files(path: Path) -> list[str]:
    """The incomplete files of a model (a folder with its sub-folders, or a file), each with the problem."""
    files = [path] if not path.is_dir() else sorted(file for folder in _with_subfolders(path) for file in _of(folder))
    return [f"{file} {problem}" for file in files if (problem := why_incomplete(file))]


def _explain(name: str, error: BaseException) -> str:
    path = Path(name)
    said = _in_a_line(error)
    if is_out_of_memory(error) or "out of memory" in said:
        return "it needs more memory than there is"
    if isinstance(error, InputError):
        return str(error)
    if path.exists():
        if broken := broken_files(path):
            return f"{'; '.join(broken[:_SHOWN])}"
        if path.is_file():
            return (
                f"it is a file; a folder with a config.json or a hub name is needed (diffusers' from_single_file and "
                f"save_pretrained make a folder of many published files; the library says: {said})"
            )
        names = [entry.name for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
        held = shorten(names) if names else "nothing"
        if found := re.search(r"no file named (\S+?)[, ]", said):
            return f"it has no {found[1]} ({said}), but {held}: rename or add the file"
        return f"{said}. The folder holds {held}"
    if os.path.islink(path):
        return f"{name} is a broken link"
    if path.suffix in WEIGHTS:
        return f"there is no file {name}" + ("" if path.is_absolute() else f" in {Path.cwd()}")
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        return f"there is no file or folder {name}, and it is not a name on the Hugging Face hub (OWNER/NAME)"
    return (
        f"there is no file or folder {name} in {Path.cwd()}, and it cannot be loaded from the Hugging Face hub "
        f"({root_of(error)}). On a machine with a connection, download it (`hf download {name} --local-dir FOLDER`), "
        "and give the folder in place of the name; or copy that machine's cache of the hub, and set HF_HOME to the "
        "copy and HF_HUB_OFFLINE=1. A private or gated model needs HF_TOKEN"
    )


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).partition(" If you want to instead overwrite")[0][:400].rstrip(".")
    return text if isinstance(error, (OSError, ValueError)) and text else f"{type(error).__name__}: {text}"


def _why_others(missing: list[str], extra: list[str]) -> str:
    """A hint why tensors have other names: a wrapper's prefix, or another model's config."""
    for name in missing:
        prefixes = {other.removesuffix(name) for other in extra if other.endswith("." + name)}
        if len(prefixes) == 1:
            (prefix,) = prefixes
            return f"Their names have the prefix {prefix!r} of a wrapper: save them without it"
    return "Does config.json belong to these weights?"


def _with_subfolders(folder: Path) -> list[Path]:
    return [folder, *(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))]


def _of(folder: Path) -> list[Path]:
    return [
        file
        for file in folder.iterdir()
        if file.suffix in _CHECKED and not file.name.startswith(".") and (file.suffix in WEIGHTS or not file.is_dir())
    ]
