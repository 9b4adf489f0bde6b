"""Folders at a URL that are written: a working copy on this machine's disk, of which finished files are uploaded.

Stages append to logs, rename folders, map files into memory and have libraries write model folders: nothing of which a
bucket can do. A client's files in place of these would change every writer, and leave those of the libraries. So a
stage works in a plain folder, with the same code for both; what it has finished is uploaded at every record
(`Mirror.push`). The URL is the only truth: `Mirror.open` removes from the working copy what the URL lacks or has in
another version, so that a stopped stage can go on on any machine, and never with files that were not uploaded.

An object appears whole or not at all, but several of them do not appear together. So the files that say that others
are complete come last (`_order`): records, `config.json` of a model, `state.json` of a checkpoint, `stage.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from odvae.running.errors import DiskError, InputError
from odvae.running.files import write_json
from odvae.running.folder_lock import exclusive_update, is_being_written
from odvae.storage.client import call
from odvae.storage.files import download, local_copy
from odvae.storage.paths import is_remote, open_path, work_folder
from odvae.storage.states import FileState, version_of
from odvae.storage.trees import in_threads, list_tree
from odvae.storage.whole_files import remove, upload

# What is known of the working copy's files: relative name -> [version at the URL, size, time of modification here].
_RECORD = ".mirror.json"

# Seconds that one process waits for another one of this machine, which fetches the same folder.
_LONGEST_FETCH = 24 * 3600

# Names that are never uploaded. (Others that begin with a dot are: torch's sharded checkpoints have a `.metadata`.)
_PRIVATE = re.compile(r"\.(.*\.partial|.*lock|mirror\.json|verified\.jsonl|write_test.*)")

# Suffixes of models that are one file.
_WEIGHTS = (".ckpt", ".pt", ".pth", ".safetensors")

# Names of files that say that others of the same folder are complete, in the order of their upload.
_MARKERS = ("config.json", "manifest.json", "state.json", "stage.json")

# Chooses, of the relative names of all files at a URL, those that are fetched.
Choice = Callable[[Collection[str]], Iterable[str]]

_warned: set[str] = set()


def warn_of_no_locks(url: Path) -> None:
    """Say once that nothing keeps a second command on another machine from writing to the same URL."""
    if str(url) not in _warned:
        _warned.add(str(url))
        print(
            f"warning: {url}: storage of this kind has no locks; make sure that no other command writes into this "
            "folder meanwhile (parts of one encoding or packing may)",
            file=sys.stderr,
            flush=True,
        )


class Mirror:
    """The working copy `folder` of a folder at `url`; `label` tells several of them on one machine apart.

    One process of a machine calls the methods; locks and what is not complete are never uploaded.
    """

    def __init__(self, url: Path, label: str = "", kind: str = "stages") -> None:
        self.url, self.folder = url, work_folder(url, kind)
        if label:
            self.folder = self.folder.with_name(f"{self.folder.name}~{label}")
        self.listing: dict[str, FileState] = {}
        """The files at the URL when they were last listed, and those that were uploaded since."""
        self._known: dict[str, list[Any]] = {}

    def open(self, choice: Choice, to_read: bool = False) -> None:
        """Make the working copy what the URL has, of the files of the `choice`; what the URL lacks is removed from it.

        `to_read`: where another process of this machine writes the working copy, it is taken as it is.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = f".{self.folder.name}.fetch.lock"
        with errors_named(self.folder, self.url), exclusive_update(self.folder.parent, lock, timeout=_LONGEST_FETCH):
            if not (to_read and is_being_written(self.folder)):
                self._open(choice)

    def _open(self, choice: Choice) -> None:
        self.listing = list_tree(self.url)
        recorded = self._recorded()
        self._known = {}
        for path in _files_below(self.folder):
            name = path.relative_to(self.folder).as_posix()
            state, known = self.listing.get(name), recorded.get(name)
            if state is not None and known == [state.version, *_state_of(path)]:
                self._known[name] = known
            else:
                path.unlink()
        _remove_empty_folders(self.folder)
        self._pull(choice)

    def refresh(self, choice: Choice) -> None:
        """Fetch what others have written since: files of the `choice` that are not here in the URL's version."""
        self.listing = list_tree(self.url)
        self._pull(choice)

    def _pull(self, choice: Choice) -> None:
        todo = [name for name in choice(self.listing) if not self._has(name, self.listing[name])]

        def fetch(name: str) -> None:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.listing[name] = download(self.url / name, path)
            self._known[name] = [self.listing[name].version, *_state_of(path)]

        try:
            in_threads(fetch, todo)
        finally:
            self._record()

    def push(self, within: str = "") -> None:
        """Upload the files that are new or have changed, and remove at the URL those that were removed here: all, or
        those of a folder.

        Files that were never here remain at the URL. Raises StorageError with the first that cannot be written; the
        others that come before it are there.
        """
        changed: dict[int, list[str]] = {}
        for path in _files_below(self.folder / within):
            name = path.relative_to(self.folder).as_posix()
            known = self._known.get(name)
            if known is None or known[1:] != _state_of(path):
                changed.setdefault(_order(name), []).append(name)
        below = f"{within}/" if within else ""
        gone = [name for name in self._known if name.startswith(below) and not (self.folder / name).exists()]
        try:
            for order in sorted(changed):
                in_threads(self._upload, changed[order])
            for name in sorted(gone, key=_order, reverse=True):  # what marks others as complete goes first
                remove(self.url / name)
                self.listing.pop(name, None)
                del self._known[name]
        finally:
            self._record()

    def below(self, folder: str) -> list[str]:
        """The names of the files below a folder at the URL."""
        return [name for name in self.listing if name.startswith(f"{folder}/")]

    def delete(self, folder: str) -> None:
        """Remove a folder, here and at the URL."""
        self.forget(folder)
        for name in sorted(self.below(folder), key=_order, reverse=True):
            remove(self.url / name)
            del self.listing[name]

    def forget(self, folder: str) -> None:
        """Remove a folder here; at the URL it remains."""
        shutil.rmtree(self.folder / folder, ignore_errors=True)
        for name in self.below(folder):
            self._known.pop(name, None)
        self._record()

    def _upload(self, name: str) -> None:
        state = _state_of(self.folder / name)
        upload(self.folder / name, self.url / name)
        info = call(self.url / name, lambda files, path: files.info(path))
        self.listing[name] = FileState(state[0], version_of(info))
        self._known[name] = [self.listing[name].version, *state]

    def _has(self, name: str, state: FileState) -> bool:
        path = self.folder / name
        return path.is_file() and self._known.get(name) == [state.version, *_state_of(path)]

    def _recorded(self) -> dict[str, list[Any]]:
        """What the last process has recorded; nothing where that is not readable: everything is fetched then."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.folder / _RECORD).read_bytes())
            return found if isinstance(found, dict) else {}
        return {}

    def _record(self) -> None:
        write_json(self.folder / _RECORD, self._known)


@contextlib.contextmanager
def errors_named(folder: Path, url: Path) -> Iterator[None]:
    """Within it, input errors that name a working copy `folder` name its `url` in its place."""
    try:
        yield
    except InputError as error:
        rename_in(error, folder, url)
        raise


def rename_in(error: BaseException, folder: Path, url: Path) -> None:
    """Have an input error name a `url` in place of its working copy `folder`, unless it is the copy that is wrong."""
    if isinstance(error, InputError) and not isinstance(error, DiskError):
        error.args = tuple(str(one).replace(str(folder), str(url)) for one in error.args)


def fetched(folder: Path, choice: Choice) -> Path:
    """A folder of this machine with the files of the `choice`: the folder itself, or of one at a URL its working copy.

    Where another process of this machine writes the working copy, it is taken as it is.
    """
    if not is_remote(folder):
        return folder
    mirror = Mirror(folder)
    mirror.open(choice, to_read=True)
    return mirror.folder


def is_working_copy(path: Path) -> bool:
    """Whether a path is in the working copy of a folder at a URL."""
    return any((folder / _RECORD).is_file() for folder in path.parents)


def local_model(name: str) -> str:
    """A model's folder, file or hub name; of one at a URL the path of a copy on this machine."""
    if "://" not in name:
        return name
    path = open_path(name)
    if path.suffix in _WEIGHTS:
        return str(local_copy(path))
    mirror = Mirror(path, kind="models")  # apart from stages' folders, which may have this one within
    mirror.open(models)
    return str(mirror.folder)


def everything(names: Collection[str]) -> Collection[str]:
    return names


def models(names: Collection[str]) -> list[str]:
    """Of a stage's files its models and records: not its checkpoints, shards and pictures of progress."""
    return [name for name in names if not _is_large(name) and "checkpoints" not in name.split("/")]


def needed_to_resume(names: Collection[str]) -> list[str]:
    """Of a stage's files those that it needs to go on: models, records, and of checkpoints the newest complete one."""
    newest: dict[str, str] = {}  # folder of checkpoints -> its newest complete one, which has a state.json
    for path in sorted(map(PurePosixPath, names)):
        if path.name == "state.json" and path.parents[1].name == "checkpoints":
            newest[str(path.parents[1])] = str(path.parent)
    kept = tuple(f"{folder}/" for folder in newest.values())
    return [*models(names), *(name for name in names if name.startswith(kept))]


def _is_large(name: str) -> bool:
    return name.endswith((".tar", ".arrow", ".mp4", ".gif", ".png"))


def _order(name: str) -> int:
    """Files of a lower order are uploaded before those of a higher one."""
    path = PurePosixPath(name)
    if path.name in _MARKERS:
        return 2 + _MARKERS.index(path.name)
    return int(path.suffix == ".json")


def _files_below(folder: Path) -> list[Path]:
    """The files below a folder, but for locks, records of this machine, and what is not complete."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _PRIVATE.fullmatch(name)]
        found += [Path(root, name) for name in names if not _PRIVATE.fullmatch(name)]
    return found


def _remove_empty_folders(folder: Path) -> None:
    for root, _, _ in os.walk(folder, topdown=False):
        if root != str(folder):
            with contextlib.suppress(OSError):
                os.rmdir(root)


def _state_of(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
