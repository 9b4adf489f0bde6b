"""Where encoded shards go: a folder of this machine, or one at a URL, to which each finished shard is uploaded.

What is to be uploaded is written into a folder of the process's own and removed when it is at the URL: at most three
shards lie there, one that is written, one that waits and one that is uploaded, while the next are encoded.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ldm.encoding.plan import record_path
from odvae.running.files import remove_leftovers, temporary_path
from odvae.shards.facts_journal import shard_index_path
from odvae.storage.paths import is_remote, work_folder
from odvae.storage.whole_files import upload


class ShardTarget:
    """`folder` is where shards, their indexes and their records are written; `deliver` is called for each that is
    complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def deliver(self, name: str) -> None:
        """The shard `name`, its index and its record are written."""


class _Uploads(ShardTarget):
    """Uploads them in a thread: the record last, since it says that the shard is complete."""

    def __init__(self, folder: Path, url: Path, thread: ThreadPoolExecutor) -> None:
        super().__init__(folder)
        self.url, self._thread = url, thread
        self._last: Future[None] | None = None

    def deliver(self, name: str) -> None:
        self.wait()
        self._last = self._thread.submit(self._upload, name)

    def wait(self) -> None:
        """Wait for the last upload. Raises StorageError where it failed."""
        if self._last is not None:
            self._last.result()

    def _upload(self, name: str) -> None:
        for path in (shard_index_path(self.folder, name), self.folder / name, record_path(self.folder, name)):
            if path.exists():  # a job whose clips all failed has a record alone
                upload(path, self.url / path.relative_to(self.folder).as_posix())
                path.unlink()


@contextlib.contextmanager
def open_target(folder: Path) -> Iterator[ShardTarget]:
    """The target for shards of latents in `folder`; at the end all of them are there.

    Raises StorageError, at the next shard or at the end, where one cannot be uploaded; it is encoded again then.
    """
    if not is_remote(folder):
        yield ShardTarget(folder)
        return
    work = work_folder(folder)
    work.mkdir(parents=True, exist_ok=True)
    remove_leftovers(work.parent, dead_only=True)
    own = temporary_path(work.with_name(f"{work.name}-shards"))
    own.mkdir()
    try:
        with ThreadPoolExecutor(1, "upload") as thread:
            target = _Uploads(own, folder, thread)
            yield target
            target.wait()
    finally:
        shutil.rmtree(own, ignore_errors=True)
