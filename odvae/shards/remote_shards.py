"""Shards that are not on disk: named by URLs or commands, read as a stream from their first byte to their last.

Whatever answers may be dead, slow or cut: every read has a time limit, and every trouble becomes a `ShardTrouble` that
says what happened to which shard.
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

# What programs end with when nobody reads on: by SIGPIPE, the same through a shell, and curl's own.
_NOBODY_READS = (0, -signal.SIGPIPE, 128 + signal.SIGPIPE, 23)

# What may follow a tar's end mark: padding.
_MOST_PADDING = 1 << 20


class ShardTrouble(InputError):
    """A shard that gave nothing, or not all: the message says why, without the shard's name."""


def expand_urls(urls: str) -> list[str]:
    """The shards that a text with braces and `::` names, as webdataset has it, and with `*` for files.

    Raises InputError for bad braces, and where no file matches.
    """
    from webdataset.shardlists import expand_urls as expand

    try:
        expanded = expand(urls)
    except ValueError as error:  # braceexpand's
        raise InputError(f"data.stream={urls!r}: {error}") from None
    return [shard for url in expanded for shard in _matching_files(url)]


def _matching_files(url: str) -> list[str]:
    """What a pattern of files matches; a URL or a command as it is."""
    if re.match(r"\w+:", url) or not any(mark in url for mark in "*?[") or Path(url).exists():
        return [url]
    found = sorted(glob.glob(url))
    if not found:
        raise InputError(f"data.stream={url}: no file matches")
    return found


def read_remote_shard(
    url: str, patience: float, count: Callable[[int], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """The samples of a shard, {"__key__": key, "__url__": url, extension: bytes}, as far as they come.

    Raises ShardTrouble where it cannot be opened, gives no byte for `patience` seconds, ends too early or holds what
    shards are refused for; what came before was given. `count` is called with the size of whatever is received.
    """
    with _opened(url, patience, count) as source:
        try:
            with tarfile.open(fileobj=source, mode="r|*", bufsize=1 << 18) as tar:
                yield from _grouped(tar, url)
                if not saw_end_mark(tar):
                    raise tarfile.ReadError("it ends without an end mark")
                source.read_to_end(_MOST_PADDING)
        except ShardTrouble:
            raise
        except InputError as error:
            raise ShardTrouble(str(error)) from None
        except Exception as error:  # tarfile's, zlib's, the system's
            raise ShardTrouble(source.explain(error)) from None


def _grouped(tar: tarfile.TarFile, url: str) -> Iterator[dict[str, Any]]:
    """Members that follow each other and have one key."""
    sample: dict[str, Any] = {}
    for member in tar:
        place = split_member_name(member.name)
        if place is None or not (member.isfile() or member.islnk() or member.issym()):
            continue
        check_member_name(member.name, url)
        key, extension = place
        if sample.get("__key__") != key:
            if sample:
                yield sample
            sample = {"__key__": key, "__url__": url}
        if extension in sample:
            raise ShardTrouble(f"member {member.name} is there twice")
        if not member.isfile():
            raise ShardTrouble(f"member {member.name} is a link; pack the files themselves (tar --hard-dereference -h)")
        file = tar.extractfile(member)
        assert file is not None  # it is a file
        sample[extension] = file.read()
        if len(sample[extension]) < member.size:
            raise ShardTrouble(f"ends inside {member.name}")
    if sample:
        yield sample


@contextlib.contextmanager
def _opened(url: str, patience: float, count: Callable[[int], None]) -> Iterator[_TimedSource]:
    try:
        source = _TimedSource(*_open(url, patience), patience, count)
    except FileNotFoundError as error:
        missing = "" if error.filename in (None, url) else f"{error.filename} "
        raise ShardTrouble(f"{missing}does not exist") from None
    except ShardTrouble:
        raise
    except Exception as error:  # of whatever library a URL's scheme needs
        raise ShardTrouble(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    with source:
        yield source


def _open(url: str, patience: float) -> tuple[IO[bytes], subprocess.Popen | None, IO[bytes] | None]:
    """What to read from; where that is another program, the program and what it says of errors."""
    scheme, colon, rest = url.partition(":")
    if scheme == "pipe":
        return _started(rest, shell=True)
    if scheme in ("http", "https", "ftp") and colon:
        limit = str(max(1, round(patience)))
        return _started(["curl", "-fsSL", "--connect-timeout", limit, "--retry", "2", url])
    if colon and scheme not in ("file",) and "/" not in scheme and not Path(url).exists():
        from webdataset.gopen import gopen

        found = gopen(url)  # s3, gs, hf and what is registered there
        return (found.stream, found.proc, None) if hasattr(found, "proc") else (found, None, None)
    path = Path(rest.removeprefix("//") if scheme == "file" and colon else url)
    if path.is_dir():
        raise ShardTrouble("is a folder; name its shards, as FOLDER/{00000..00009}.tar")
    return open(path, "rb", buffering=0), None, None


def _started(command: str | list[str], shell: bool = False) -> tuple[IO[bytes], subprocess.Popen, IO[bytes]]:
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the source
    process = subprocess.Popen(
        command, shell=shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
    )
    assert process.stdout is not None
    return process.stdout, process, errors


class _TimedSource(io.RawIOBase):
    """A file or a program's output, whose reads wait at most `patience` seconds."""

    def __init__(
        self,
        file: IO[bytes],
        process: subprocess.Popen | None,
        errors: IO[bytes] | None,
        patience: float,
        count: Callable[[int], None],
    ) -> None:
        self.file, self.process, self.errors, self.patience, self.count = file, process, errors, patience, count
        self.beginning = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(memoryview(buffer)))
        buffer[: len(data)] = data
        self.count(len(data))
        if len(self.beginning) < 8:
            self.beginning += data[:8]
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            descriptor = self.file.fileno()
        except (OSError, AttributeError):  # a library's own file object
            return self.file.read(size)
        if not select.select([descriptor], [], [], self.patience)[0]:
            raise ShardTrouble(f"gave nothing for {self.patience:g} s (data.stream_seconds)")
        return os.read(descriptor, size)

    def read_to_end(self, most: int) -> None:
        """Let the program write out its padding, so that it ends well."""
        with contextlib.suppress(ShardTrouble):
            while most > 0 and (data := self._read(1 << 16)):
                most -= len(data)

    def explain(self, error: Exception) -> str:
        """Why a tar could not be read to its end: what its program says, or the error itself."""
        status = self._status()
        if status is not None and status not in _NOBODY_READS:
            words = self._said()
            ended = f"its command ended with status {status}" + (f" ({words})" if words else "")
            return ended if not self.beginning else f"{ended} before the shard was whole"
        if not self.beginning:
            return "is empty (0 bytes)"
        for mark, (kind, unpack, _) in COMPRESSIONS.items():
            if self.beginning.startswith(mark):
                way = f"pipe:COMMAND | {unpack.split()[0]} -dc"
                return f"is compressed by {kind} ({error}); unpack it on the way, as {way}"
        return f"is not a whole tar ({error})"

    def _status(self) -> int | None:
        """How the program ended; None where there is none, or it goes on."""
        if self.process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=1)
        return None

    def _said(self) -> str:
        """The last line of the program's errors."""
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
    """End a program and whatever it started, at once where it does not end by itself."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL) if os.getpgid(process.pid) == process.pid else process.kill()
        process.wait()
