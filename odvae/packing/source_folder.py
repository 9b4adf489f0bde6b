"""Listing of all files of a folder that is packed, by their type."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import Self

from odvae.cluster.parts import Part
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.running.text import counted, printable, why_no_file
from odvae.video.extensions import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

MEDIA_EXTENSIONS = (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS)

# Folders that systems create for thumbnails, old versions, caches and deleted files.
HIDDEN_FOLDERS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")

# Maximum number of files that are counted in a folder that is skipped.
_COUNTED = 10_000

# First characters of macOS's AppleDouble files, which have metadata of other files.
MAC_SIDE_FILE = "._"


@dataclass
class SourceFolder:
    """The files below a folder, as paths relative to it, in a fixed order."""

    root: Path
    media: list[str] = field(default_factory=list)
    """Videos, then images by their extension, so that the samples of a shard have the same members."""
    others: list[str] = field(default_factory=list)
    """Other files, including captions."""
    odd: dict[str, str] = field(default_factory=dict)
    """Paths that cannot be read as files, and the reasons."""
    part: Part | None = None
    """The part that is packed; only of its files it is known that they can be read."""

    @property
    def own(self) -> list[str]:
        """The media of the part, in order."""
        return self.media if self.part is None else [name for name in self.media if self.part.has(name)]

    def path(self, name: str) -> Path:
        return self.root / name

    def state(self, name: str) -> list[int | str] | None:
        """Size and modification time of a file, or its version at a URL; None if there is none."""
        return state_of(self.root / name)

    def prepare(self, names: Iterable[str], _settings: PackingSettings) -> Iterator[tuple[str, Path | Failure]]:
        """Each of the names with the file that is to be examined."""
        return ((name, self.root / name) for name in names)

    def release(self, name: str) -> None:
        """The file is not needed any more."""

    def ensure(self, names: Iterable[str]) -> None:
        """Have these files below `root`."""

    def ensure_beside(self, file: str, beside: Mapping[str, Sequence[str]]) -> None:
        """Have the texts of a video below `root`; `beside` has those of all."""

    def in_order(self, where: str) -> Self:
        """Sort what was found; returns this object. Raises InputError, which names the source `where`, if it has no
        video or image."""
        if not self.media:
            allowed = ", ".join(f".{extension}" for extension in MEDIA_EXTENSIONS)
            there = f"; there are {self.kinds(self.others)}" if self.others else ""
            there += "".join(f"\n  {printable(name)} {problem}" for name, problem in list(self.odd.items())[:20])
            raise InputError(f"source folder {where} holds no video or image ({allowed}){there}")
        # In the order of the parts of their paths; then videos before images.
        self.media.sort(key=lambda name: Path(name).parts)
        self.media.sort(key=lambda name: (member_kind(name) != "mp4", member_kind(name)))
        self.others.sort()
        return self

    def kinds(self, files: Sequence[str]) -> str:
        """Counts of the files by extension, most frequent first, as text."""
        counts = Counter(f".{extension_of(file)}" if extension_of(file) else "no extension" for file in files)
        return ", ".join(f"{printable(kind)} ({count})" for kind, count in counts.most_common(10))


def extension_of(file: str) -> str:
    """The extension of a file or of a URL's file, in lower case without dot."""
    if "://" in file:
        file = re.split("[?#]", file, maxsplit=1)[0].partition("://")[2].partition("/")[2]
    return os.path.splitext(file)[1].lower().lstrip(".")


def member_kind(file: str) -> str:
    """The member's extension in the shard: mp4 for all videos, as in video2dataset, whatever their container."""
    return extension_of(file) if extension_of(file) in IMAGE_EXTENSIONS else "mp4"


def list_source(root: Path, outputs: Sequence[Path] = (), part: Part | None = None) -> SourceFolder:
    """List everything below a folder, except in `outputs`. Links to folders are followed, each folder once.

    With a `part`, all names are listed, but only its own files are looked at.

    Raises InputError if it is not a folder, or has no video or image.
    """
    if (problem := why_no_file(root)) != "is a folder, not a file":
        raise InputError(f"source folder {root} {problem or 'is a file; give the folder that it is in'}")
    found, taken = SourceFolder(root, part=part), {os.path.realpath(output) for output in outputs}
    for name, is_folder in _walk(root, taken, found.odd):
        path = root / name
        if is_folder:
            if extension_of(name) in MEDIA_EXTENSIONS:
                found.odd[name] = "is a folder, not a file; its files are listed too"
        elif extension_of(name) in MEDIA_EXTENSIONS and os.path.basename(name).startswith(MAC_SIDE_FILE):
            found.odd[name] = "is a macOS AppleDouble file, which holds no video"
        elif (part is None or part.has(name)) and (problem := why_no_file(path)):
            found.odd[name] = problem
        else:
            (found.media if extension_of(name) in MEDIA_EXTENSIONS else found.others).append(name)
    return found.in_order(str(root))


def state_of(path: Path) -> list[int | str] | None:
    """Size and modification time of a file; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _walk(root: Path, taken: set[str], odd: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """Yield (path relative to the root, whether it is a folder); what is skipped is added to `odd` with the reason.

    Folders come before links to folders, so that files in the tree get their own path and not a link's.
    """
    seen = {_identity(os.stat(root)): "the source folder itself"}
    waiting, links = [""], deque[str]()
    while waiting or links:
        if waiting:
            folder = waiting.pop()
        elif not _is_new(root, folder := links.popleft(), seen, odd):
            continue
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            odd[folder] = f"is a folder that cannot be listed ({error.strerror})"
            continue
        below = []
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if not _is_folder(entry):
                yield name, False
            elif entry.name.startswith(".") or entry.name in HIDDEN_FOLDERS:
                if os.path.realpath(entry.path) not in taken:
                    odd[name] = f"is a hidden folder ({_count_files(entry.path)}), which is skipped"
            elif os.path.realpath(entry.path) not in taken:
                yield name, True
                if entry.is_symlink():
                    links.append(name)
                elif _is_new(root, name, seen, odd):
                    below.append(name)
        waiting += reversed(below)


def _count_files(folder: str) -> str:
    """The number of files below a folder, and of videos and images among them, as text."""
    files = itertools.islice((name for *_, names in os.walk(folder) for name in names), _COUNTED)
    extensions = [extension_of(name) for name in files]
    media = sum(extension in MEDIA_EXTENSIONS for extension in extensions)
    more = "at least " if len(extensions) == _COUNTED else ""
    return f"{more}{counted(len(extensions), 'file')}, {media} of them videos or images"


def _is_new(root: Path, folder: str, seen: dict[tuple[int, int], str], odd: dict[str, str]) -> bool:
    """Whether a folder, or the target of a link, has not been listed yet; it is then added to `seen`."""
    try:
        identity = _identity(os.stat(root / folder))
    except OSError as error:
        odd[folder] = f"is a folder that cannot be opened ({error.strerror})"
        return False
    if identity in seen:
        kind = "a link to a folder" if (root / folder).is_symlink() else "a folder"
        odd[folder] = f"is {kind} that is here already: {seen[identity]}"
        return False
    seen[identity] = folder
    return True


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example a link to itself
        return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
