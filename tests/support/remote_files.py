"""Bytes of three blocks for tests of files by URL, and files in memory."""

import random
from pathlib import Path

from odvae.storage.files import BLOCK, atomic_file

DATA = random.Random(1).randbytes(3 * BLOCK + 1000)


def write_memory(path: Path, data: bytes) -> Path:
    with atomic_file(path) as file:
        file.write(data)
    return path
