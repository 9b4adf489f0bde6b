"""sha256 of files that rarely change, remembered by their size and time of change."""

from __future__ import annotations

import contextlib
from pathlib import Path

from odvae.running.hashing import file_fingerprint
from odvae.running.run_folder import read_json, write_json


class HashCache:
    """Hashes each file once; again only where its size or time of change is another than then.

    A changed bit under an unchanged time goes unseen: who must know hashes anew (`fingerprints.file_fingerprint`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list] = read_json(path) if path.is_file() else {}

    def sha256(self, file: Path) -> str:
        key, state = str(file.resolve()), [file.stat().st_size, file.stat().st_mtime_ns]
        known = self.known.get(key)
        if known is not None and known[:2] == state:
            return known[2]
        digest = file_fingerprint(file)
        self.known[key] = [*state, digest]
        return digest

    def save(self) -> None:
        """Keep it for next time; in a folder that may not be written everything is hashed again then."""
        with contextlib.suppress(OSError):
            write_json(self.path, self.known)
