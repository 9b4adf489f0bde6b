"""A folder at a URL as the source of a packing: listed once, each file copied here when it is needed, for a while.

The copies lie below `root` under their own names, so that captions are found as in a folder of this machine. A video is
copied before it is examined and removed when its shard is written: as many lie there as `SourceTable` says. Texts
beside videos come some hundreds at a time, and are removed with their videos.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from odvae.cluster.parts import Part
from odvae.packing.settings import PackingSettings
from odvae.packing.source_folder import HIDDEN_FOLDERS, MAC_SIDE_FILE, MEDIA_EXTENSIONS, SourceFolder, extension_of
from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.running.text import printable
from odvae.storage.files import FileState, download
from odvae.storage.trees import in_threads, list_tree

# Videos whose texts are fetched together.
_TOGETHER = 256

# Bytes of a name that the usual file systems allow.
_LONGEST_NAME = 255


@dataclass
class SourceBucket(SourceFolder):
    """The files below `url`. With `copies` False (engine=ray) videos are not copied here: each task reads its own."""

    url: Path = Path()
    states: dict[str, FileState] = field(default_factory=dict)
    copies: bool = True

    def path(self, name: str) -> Path:
        return self.root / name if self.copies else self.url / name

    def state(self, name: str) -> list[int | str] | None:
        return list(self.states[name]) if name in self.states else None

    def prepare(self, names: Iterable[str], settings: PackingSettings) -> Iterator[tuple[str, Path | Failure]]:
        """Each of the names with its file. Raises InputError where one cannot be copied: it is not left out, since the
        same command may find it when the storage can be reached again."""
        if not self.copies:
            yield from ((name, self.url / name) for name in names)
            return
        for together in _in_groups(names, settings.downloads):
            self.ensure(together)
            yield from ((name, self.root / name) for name in together)

    def ensure(self, names: Iterable[str]) -> None:
        in_threads(lambda name: copy_here((self.url / name, self.root / name)), list(names))

    def ensure_beside(self, file: str, beside: Mapping[str, Sequence[str]]) -> None:
        wanted = beside.get(file, ())
        if all((self.root / name).is_file() for name in wanted):
            return
        first = self._numbers()[file]
        following = self.media[first : first + _TOGETHER]
        self._texts |= {one: beside.get(one, ()) for one in following}
        self.ensure(name for one in following for name in beside.get(one, ()))

    def release(self, name: str) -> None:
        for one in (name, *self._texts.pop(name, ())):
            (self.root / one).unlink(missing_ok=True)

    def _numbers(self) -> dict[str, int]:
        if not self._number_of:
            self._number_of = {name: number for number, name in enumerate(self.media)}
        return self._number_of

    _number_of: dict[str, int] = field(default_factory=dict, repr=False)
    _texts: dict[str, Sequence[str]] = field(default_factory=dict, repr=False)


def _in_groups(names: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(names)
    while group := list(itertools.islice(remaining, size)):
        yield group


def copy_here(task: tuple[Path, Path]) -> int:
    """Copy a file at a URL, unless it is here; returns its size."""
    url, target = task
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        download(url, target)
    return target.stat().st_size


def list_bucket(
    url: Path, root: Path, settings: PackingSettings, part: Part | None, outputs: Collection[Path] = ()
) -> SourceBucket:
    """List everything below a folder at a URL, except in `outputs`; copies will lie below `root`.

    Raises InputError where nothing is there, and where there is no video or image.
    """
    found = SourceBucket(root, part=part, url=url, states=list_tree(url), copies=settings.engine != "ray")
    if not found.states:
        raise InputError(f"source folder {url} does not exist, or nothing is in it")
    within = [str(output).removeprefix(f"{url}/") + "/" for output in outputs if str(output).startswith(f"{url}/")]
    folders = {"/".join(name.split("/")[:i]) for name in found.states for i in range(1, name.count("/") + 1)}
    for name in sorted(found.states):
        *above, own = name.split("/")
        if name.startswith(tuple(within)):
            continue
        if hidden := next((one for one in above if one.startswith(".") or one in HIDDEN_FOLDERS), None):
            found.odd["/".join(above[: above.index(hidden) + 1])] = "is a hidden folder, which is skipped"
        elif name in folders:
            found.odd[name] = "is a key that is a folder too: others begin with it and a slash"
        elif any(len(one.encode()) > _LONGEST_NAME for one in (*above, own)) or "\0" in name:
            found.odd[name] = (
                f"has a name that no disk takes: a part of more than {_LONGEST_NAME} bytes, or a zero byte"
            )
        elif own.startswith(MAC_SIDE_FILE) and extension_of(name) in MEDIA_EXTENSIONS:
            found.odd[name] = "is a macOS AppleDouble file, which holds no video"
        else:
            (found.media if extension_of(name) in MEDIA_EXTENSIONS else found.others).append(name)
    return found.in_order(printable(str(url)))
