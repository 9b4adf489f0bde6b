"""Calls of fsspec's clients: repeated after transient faults, with errors that name the URL, and safe after a fork."""

from __future__ import annotations

import contextlib
import errno
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from odvae.storage.paths import StorageError

T = TypeVar("T")

ATTEMPTS = 6
FIRST_WAIT = 0.2  # seconds before the second attempt; doubled for each further one
LONGEST_WAIT = 20.0

_TRANSIENT_ERRNO = {
    errno.EIO, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED,
    errno.EPIPE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EREMOTEIO,  # the last: s3fs for status 500
}  # fmt: skip
_CLIENT_LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "httpx", "httpcore", "requests", "urllib3", "gcsfs")
_NEVER_TRANSIENT = ("NoCredentials", "PartialCredentials", "ParamValidation", "ProfileNotFound", "InvalidURL")


class CutBodyError(OSError):
    """A response ended before all bytes had come."""

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(errno.EIO, f"the response has {found} of {expected} bytes")


def client(path: Path) -> Any:
    """The fsspec file system of a remote path.

    It is looked up in every call and never kept: fsspec has one for each process, so that a forked worker gets one of
    its own; the parent's, with its threads and connections, cannot be used there.
    """
    import fsspec

    return fsspec.filesystem(path.protocol, **_options(path.protocol))  # type: ignore[attr-defined]


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        # Retries are ours: the client's would multiply them.
        return {
            "use_listings_cache": False,
            "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"total_max_attempts": 1}},
        }
    if scheme in ("http", "https"):
        import aiohttp

        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)}}
    return {}


def call(path: Path, action: Callable[[Any, str], T]) -> T:
    """`action(file system, path in it)`, attempted again after transient faults with exponential waits and jitter.

    Raises StorageError with the URL and what was found; FileNotFoundError stays one, for the caller to explain.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action(client(path), path.path)  # type: ignore[attr-defined]
        except FileNotFoundError:
            raise
        except Exception as error:
            if not is_transient(error):
                raise _explained(path, error) from error
            if attempt == ATTEMPTS:
                raise StorageError(f"{path}: {ATTEMPTS} attempts failed, the last with: {_words(error)}") from error
        # Jitter keeps the ranks of a launch from coming back all at once.
        time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


@contextlib.contextmanager
def time_limit_paused() -> Iterator[None]:
    """Within it, the kernel timer that limits a task of a worker process (`odvae.running.worker_pool`) stands still."""
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        if left:
            signal.setitimer(signal.ITIMER_REAL, left)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: a timeout, a reset, a cut body, status 408, 429 or 5xx."""
    status = _status(error) or _status(error.__cause__)  # s3fs raises OSError from botocore's error
    if status is not None:
        return status in (408, 429) or status >= 500
    if type(error).__name__.startswith(_NEVER_TRANSIENT):
        return False
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return False
    if isinstance(error, TimeoutError | ConnectionError) or "Timeout" in type(error).__name__:
        return True
    if type(error).__module__.partition(".")[0] in _CLIENT_LIBRARIES:
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an error of aiohttp, requests, botocore or huggingface_hub; None where it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "status", None) or getattr(response, "status_code", None)
    return found if isinstance(found, int) else None


def _explained(path: Path, error: Exception) -> StorageError:
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return StorageError(
            f"{path}: no rights to it ({_words(error)}); credentials are read from the usual environment: AWS_* for "
            "s3, GOOGLE_APPLICATION_CREDENTIALS for gs, HF_TOKEN for hf"
        )
    if "Credentials" in type(error).__name__:
        return StorageError(f"{path}: no credentials were found ({_words(error)}); set AWS_ACCESS_KEY_ID and the like")
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{path} is a folder, not a file")
    return StorageError(f"{path}: {_words(error)}")


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}".removesuffix(": ")
