"""The identity of video shards: size, modification time and sha256, each hashed once while its clips are encoded."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from odvae.storage.whole_files import fingerprint, identity


@dataclass(frozen=True)
class SourceIdentity:
    """A video shard as it was when it was hashed; of one at a URL, `mtime_ns` is a number made of its version."""

    bytes: int
    mtime_ns: int
    sha256: str


class SourceHashes:
    """Hashes video shards in the threads of `hasher`, each at most once; `known` are those that need not be."""

    def __init__(self, hasher: ThreadPoolExecutor, known: Mapping[Path, str]) -> None:
        self.hasher, self.known = hasher, known
        self._found: dict[Path, Future[SourceIdentity]] = {}

    def start(self, source: Path) -> None:
        """Have a video shard hashed, so that `identity` need not wait for it."""
        if source not in self._found:
            self._found[source] = self.hasher.submit(self._identify, source)

    def identity(self, source: Path) -> SourceIdentity:
        self.start(source)
        return self._found[source].result()

    def _identify(self, source: Path) -> SourceIdentity:
        size, version = identity(source)  # before it is read: a later change is then noticed at the next start
        return SourceIdentity(size, version, self.known.get(source) or fingerprint(source))
