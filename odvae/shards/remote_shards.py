"""Reading of remote WebDataset shards (URLs, commands, files) as streams.

Sources may be unavailable, slow or truncated: every read has a time limit, and every failure becomes a `ShardError`
with the reason.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import select
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from odvae.running.errors import InputError
from odvae.shards.tars import COMPRESSIONS, check_member_name, saw_end_mark, split_member_name

# Exit statuses of a program whose output is not read any more: success, SIGPIPE, SIGPIPE in a shell, curl's status.
_NOBODY_READS = (0, -signal.SIGPIPE, 128 + signal.SIGPIPE, 23)

# Maximum padding after a tar's end mark.
_MOST_PADDING = 1 << 20

# tarfile skips a member block by block, also beyond the end: of a size of exabytes for ever.
_MOST_READS_AT_END = 100


class ShardError(InputError):
    """A shard could not be read, or not completely; the message has the reason, without the shard's name."""


def expand_urls(urls: str) -> list[str]:
    """Expand braces and `::` in a text to the names of shards, as in webdataset, and `*` to files.

    Raises InputError for invalid braces, and if no file matches.
    """
    from webdataset.shardlists import expand_urls as expand

    try:
        expanded = expand(urls)
    except ValueError as error:  # braceexpand's
        raise InputError(f"data.stream={urls!r}: {error}") from None
    return [shard for url in expanded for shard in _matching_files(url)]


def _matching_files(url: str) -> list[str]:
    """The files that match a pattern; a URL or a command is returned unchanged."""
    if re.match(r"\w+:", url) or not any(mark in url for mark in "*?[") or Path(url).exists():
        return [url]
    found = sorted(glob.glob(url))
    if not found:
        raise InputError(f"data.stream={url}: no file matches")
    return found


def read_remote_shard(
    url: str, timeout: float, count: Callable[[int], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """Yield the samples of a shard, {"__key__": key, "__url__": url, extension: bytes}, up to the first error.

    Raises ShardError if it cannot be opened, gives no byte for `timeout` seconds, ends too early or has unsafe members;
    samples before the error have been yielded. `count` is called with the size of all received data.
    """
    with _opened(url, timeout, count) as source:
        try:
            with tarfile.open(fileobj=source, mode="r|*", bufsize=1 << 18) as tar:
                yield from _grouped(tar, url)
                if not saw_end_mark(tar):
                    raise tarfile.ReadError("it ends without an end mark")
                source.read_to_end(_MOST_PADDING)
        except ShardError:
            raise
        except InputError as error:
            raise ShardError(str(error)) from None
        except Exception as error:  # tarfile's, zlib's, the system's
            raise ShardError(source.explain(error)) from None


def _grouped(tar: tarfile.TarFile, url: str) -> Iterator[dict[str, Any]]:
    """Group successive members with the same key."""
    sample: dict[str, Any] = {}
    for member in tar:
        split = split_member_name(member.name)
        if split is None or not (member.isfile() or member.islnk() or member.issym()):
            continue
        check_member_name(member.name, url)
        key, extension = split
        if sample.get("__key__") != key:
            if sample:
                yield sample
            sample = {"__key__": key, "__url__": url}
        if extension in sample:
            raise ShardError(f"duplicate member {member.name}")
        if not member.isfile():
            raise ShardError(f"member {member.name} is a link; pack the files themselves (tar --hard-dereference -h)")
        file = tar.extractfile(member)
        assert file is not None  # it is a file
        sample[extension] = file.read()
        if len(sample[extension]) < member.size:
            raise ShardError(f"ends inside {member.name}")
    if sample:
        yield sample


@contextlib.contextmanager
def _opened(url: str, timeout: float, count: Callable[[int], None]) -> Iterator[_TimedSource]:
    try:
        source = _TimedSource(*_open(url, timeout), timeout, count)
    except FileNotFoundError as error:
        missing = "" if error.filename in (None, url) else f"{error.filename} "
        raise ShardError(f"{missing}does not exist") from None
    except ShardError:
        raise
    except Exception as error:  # from the library that a URL's scheme needs
        raise ShardError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    with source:
        yield source


def _open(url: str, timeout: float) -> tuple[IO[bytes], subprocess.Popen | None, IO[bytes] | None]:
    """(the stream, the process that writes it or None, its stderr or None)."""
    scheme, colon, rest = url.partition(":")
    if scheme == "pipe":
        return _started(rest, shell=True)
    if scheme in ("http", "https", "ftp") and colon:
        limit = str(max(1, round(timeout)))
        return _started(["curl", "-fsSL", "--connect-timeout", limit, "--retry", "2", url])
    if colon and scheme not in ("file",) and "/" not in scheme and not Path(url).exists():
        from webdataset.gopen import gopen

        found = gopen(url)  # s3, gs, hf and other registered schemes
        return (found.stream, found.proc, None) if hasattr(found, "proc") else (found, None, None)
    path = Path(rest.removeprefix("//") if scheme == "file" and colon else url)
    if path.is_dir():
        raise ShardError("is a folder; name its shards, as FOLDER/{00000..00009}.tar")
    return open(path, "rb", buffering=0), None, None


def _started(command: str | list[str], shell: bool = False) -> tuple[IO[bytes], subprocess.Popen, IO[bytes]]:
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the source
    process = subprocess.Popen(
        command, shell=shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
    )
    assert process.stdout is not None
    return process.stdout, process, errors


class _TimedSource(io.RawIOBase):
    """A file or a program's output with a timeout for each read."""

    def __init__(
        self,
        file: IO[bytes],
        process: subprocess.Popen | None,
        errors: IO[bytes] | None,
        timeout: float,
        count: Callable[[int], None],
    ) -> None:
        self.file, self.process, self.errors, self.timeout, self.count = file, process, errors, timeout, count
        self.beginning = b""
        self.reads_at_end = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(memoryview(buffer)))
        self.reads_at_end += not data
        if self.reads_at_end > _MOST_READS_AT_END:
            raise ShardError("ends long before the size that a member's header states")
        buffer[: len(data)] = data
        self.count(len(data))
        if len(self.beginning) < 8:
            self.beginning += data[:8]
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            descriptor = self.file.fileno()
        except (OSError, AttributeError):  # a file object of a library
            return self.file.read(size)
        if not select.select([descriptor], [], [], self.timeout)[0]:
            raise ShardError(f"gave nothing for {self.timeout:g} s (data.stream_seconds)")
        return os.read(descriptor, size)

    def read_to_end(self, most: int) -> None:
        """Read the padding, so that the program that writes it can end normally."""
        with contextlib.suppress(ShardError):
            while most > 0 and (data := self._read(1 << 16)):
                most -= len(data)

    def explain(self, error: Exception) -> str:
        """Why a tar could not be read to its end: the last error line of its program, or the error itself."""
        status = self._status()
        if status is not None and status not in _NOBODY_READS:
            words = self._said()
            ended = f"its command ended with status {status}" + (f" ({words})" if words else "")
            return ended if not self.beginning else f"{ended} before the end of the shard"
        if not self.beginning:
            return "is empty (0 bytes)"
        for mark, (kind, unpack, _) in COMPRESSIONS.items():
            if self.beginning.startswith(mark):
                way = f"pipe:COMMAND | {unpack.split()[0]} -dc"
                return f"is compressed with {kind} ({error}); decompress it while streaming: {way}"
        return f"is not a complete tar ({error})"

    def _status(self) -> int | None:
        """The exit status of the program; None if there is none, or it is still running."""
        if self.process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=1)
        return None

    def _said(self) -> str:
        """The last line of the program's stderr."""
        if self.errors is None:
            return ""
        self.errors.seek(0)
        lines = self.errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""

    def close(self) -> None:
        if self.closed:
            return
        self.file.close()
        if self.process is not None:
            end_process(self.process)
        if self.errors is not None:
            self.errors.close()
        super().close()


def end_process(process: subprocess.Popen) -> None:
    """End a program and the programs it started, with SIGKILL if it does not end by itself."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL) if os.getpgid(process.pid) == process.pid else process.kill()
        process.wait()
