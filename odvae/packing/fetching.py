"""Downloads of files by URL: with time and size limits, tried again where that can help, whole or not at all."""

from __future__ import annotations

import http.client
import random
import re
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odvae.running.errors import STORAGE_ERRORS, InputError
from odvae.storage.files import download, file_state
from odvae.storage.paths import CLIENTS, open_path

# Begins the reason why a file is left out, and is its group in reports.
NOT_DOWNLOADED = "cannot be downloaded"

# HTTP statuses after which the same request may succeed.
_PASSING = {408, 425, 429, 500, 502, 503, 504}

_LONGEST_PAUSE = 30.0  # seconds
_BLOCK = 1 << 20
_HEADERS = {"User-Agent": "odvae-make-shards", "Accept-Encoding": "identity"}


class DownloadError(InputError):
    """A file cannot be downloaded; the message continues a sentence about it."""


class _PassingError(Exception):
    """A failure after which the same request may succeed; `pause`: seconds that the server asks to wait."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class FetchLimits:
    """`seconds` without data, `retries` after the first request, the `largest` size in bytes."""

    seconds: float
    retries: int
    largest: int


def is_url(name: str) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name) is not None and not name.lower().startswith("file://")


def fetch(limits: FetchLimits, task: tuple[str, Path]) -> int:
    """Download a URL into a file, unless it is there; returns the file's size.

    The file appears when it is whole. Raises DownloadError with the reason: after `retries` repetitions for a server
    that fails, is silent or ends too early, at once for a missing or too large file.
    """
    url, target = task
    if target.is_file():
        return target.stat().st_size
    if not url.lower().startswith(("http://", "https://")):
        return _fetch_object(url, target, limits)
    for attempt in range(limits.retries + 1):
        try:
            return _fetch_once(url, target, limits)
        except _PassingError as error:
            reason, pause = str(error), error.pause
        if attempt < limits.retries:
            time.sleep(min(_LONGEST_PAUSE, max(pause, 0.5 * 2**attempt * random.uniform(0.5, 1.0))))
    raise DownloadError(f"{NOT_DOWNLOADED}: {reason}, {limits.retries + 1} times")


def _fetch_object(url: str, target: Path, limits: FetchLimits) -> int:
    """Download from a bucket, whose client has its own repetitions."""
    if url.partition("://")[0].lower() not in CLIENTS:
        raise DownloadError(f"{NOT_DOWNLOADED}: its scheme is not http, https or one of {', '.join(CLIENTS)}")
    try:
        size = file_state(open_path(url)).size
        if size > limits.largest:
            raise _too_large(size, limits)
        return download(open_path(url), target).size
    except DownloadError:
        raise
    except InputError as error:
        raise DownloadError(f"{NOT_DOWNLOADED}: {str(error).removeprefix(url).strip(': ')}") from None


def partial_path(target: Path) -> Path:
    """Where the file is until it is whole."""
    return target.with_name(f".{target.name}.partial")


def _fetch_once(url: str, target: Path, limits: FetchLimits) -> int:
    partial = partial_path(target)
    try:
        with _answer(url, limits) as answer, open(partial, "wb") as file:
            size = _copy(answer, file, limits)
        partial.replace(target)
        return size
    except DownloadError:
        raise
    except (http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS and error.filename is None:
            raise  # the disk is full, which is no fault of this file
        raise _PassingError(_reason(error, limits)) from None
    finally:
        partial.unlink(missing_ok=True)


def _answer(url: str, limits: FetchLimits) -> Any:
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=_HEADERS), timeout=limits.seconds)
    except urllib.error.HTTPError as error:
        with error:
            reason = f"the server's answer is {error.code} {error.reason}"
            if error.code not in _PASSING:
                raise DownloadError(f"{NOT_DOWNLOADED}: {reason}") from None
            raise _PassingError(reason, _asked_pause(error)) from None
    except (http.client.InvalidURL, UnicodeError, ValueError) as error:
        raise DownloadError(f"{NOT_DOWNLOADED}: it is no valid URL ({error})") from None
    return answer


def _asked_pause(error: urllib.error.HTTPError) -> float:
    asked = error.headers.get("Retry-After", "") if error.headers else ""
    return float(asked) if asked.isdecimal() else 0.0


def _copy(answer: Any, file: Any, limits: FetchLimits) -> int:
    length = answer.headers.get("Content-Length")
    expected = int(length) if length is not None and length.isdecimal() else None
    if expected is not None and expected > limits.largest:
        raise _too_large(expected, limits)
    size = 0
    while block := answer.read(_BLOCK):
        size += len(block)
        if size > limits.largest:
            raise _too_large(size, limits)
        file.write(block)
    if expected is not None and size < expected:
        raise _PassingError(f"the connection ended after {size} of {expected} bytes")
    return size


def _too_large(size: int, limits: FetchLimits) -> DownloadError:
    return DownloadError(
        f"{NOT_DOWNLOADED}: it has at least {size / 2**20:.0f} MiB, largest_mib is {limits.largest / 2**20:g}"
    )


def _reason(error: Exception, limits: FetchLimits) -> str:
    """One line without addresses, so that it is the same in every run."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"the server sent nothing for {limits.seconds:g} s"
    if isinstance(cause, socket.gaierror):
        return "its host is not known"
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection ended too early"
    return getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"
