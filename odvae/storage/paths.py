"""Paths and URLs: plain paths as `pathlib.Path`, others as `UPath` of universal_pathlib."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any, cast

from odvae.running.commands import install_extra
from odvae.running.errors import InputError

# Scheme -> (module of its client, how it is installed).
CLIENTS: dict[str, tuple[str, str]] = {
    "s3": ("s3fs", install_extra("s3")),
    "gs": ("gcsfs", install_extra("gcs")),
    "hf": ("huggingface_hub", install_extra("hf")),
    "http": ("aiohttp", install_extra("http")),
    "https": ("aiohttp", install_extra("http")),
    "memory": ("fsspec", "pip install fsspec"),
}

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# A URL that went through pathlib, which makes one slash of two.
_MANGLED = re.compile(r"(s3|gs|hf|https?|memory):/[^/]")


# The variable that names the folder of working copies.
WORK = "ODVAE_WORK"


class StorageError(InputError):
    """A file that is not on this machine cannot be read or written; the message has its URL and what was found.

    It ends what meets it. A sample is never replaced by another one because a server does not answer.
    """

    cause = "stop"


def open_path(text: str | Path) -> Path:
    """The path that a text names: a `pathlib.Path`, or for a URL a `UPath`, which has the same methods.

    Raises InputError for an unknown scheme, a scheme whose client is not installed, and a URL without a bucket.
    """
    if not isinstance(text, str):
        return text
    found = _URL.match(text)
    if found is None:
        if _MANGLED.match(text):
            raise InputError(f"{text}: a URL has two slashes after its scheme: {text.replace(':/', '://', 1)}")
        return Path(text)
    scheme = found[1].lower()
    if scheme == "file":
        return Path(found[2])
    if scheme not in CLIENTS:
        raise InputError(f"{text}: unknown scheme {scheme}://; allowed are plain paths, file:// and "
                         f"{', '.join(f'{name}://' for name in CLIENTS)}")  # fmt: skip
    module, install = CLIENTS[scheme]
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{text}: reading {scheme}:// needs {module}, which is not installed: {install}")
    if not found[2].strip("/"):
        raise InputError(f"{text}: it names no bucket or host")
    from upath import UPath

    return cast(Path, UPath(text))


def open_target(text: str, what: str) -> Path:
    """As `open_path`, for what is written: raises InputError for a web server; `what` is its name in the error."""
    path = open_path(text)
    if is_web_server(path):
        raise InputError(
            f"{what}={text}: nothing can be written to a web server; allowed are a path, s3://, gs://, hf://"
        )
    return path


def check_local(text: str, what: str) -> None:
    """Raise InputError for a URL in a place that takes files of this machine alone; `what` is its name in the error."""
    found = _URL.match(text) or _MANGLED.match(text)
    if found is not None:
        raise InputError(
            f"{what}={text}: a URL is not supported here yet, only a path (of a disk, a network file system, or a "
            "bucket that is mounted as one); data.stream takes URLs of shards, make_shards a table of URLs"
        )


def is_remote(path: Any) -> bool:
    """Whether a path from `open_path` is a URL's, not a file's of this machine."""
    return not isinstance(path, Path) or hasattr(path, "storage_options")


def work_folder(url: Path, kind: str = "stages") -> Path:
    """The folder of this machine that stands for a folder at a URL: below ODVAE_WORK (default: `odvae/work` in the
    user's cache folder), with the parts of the URL as names. Raises StorageError for a URL with `..` in it."""
    user = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    base = Path(os.environ.get(WORK) or os.path.join(user, "odvae", "work"))
    scheme, _, rest = str(url).partition("://")
    parts = [part for part in rest.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise StorageError(f"{url}: a part of it is . or .., which cannot be a folder here")
    return base.joinpath(kind, scheme, *parts)


def is_web_server(path: Any) -> bool:
    """Whether a path is one of a web server, which nothing can be written to, and which need not list its files."""
    return is_remote(path) and path.protocol in ("http", "https")
