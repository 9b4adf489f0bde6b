"""What lies in a folder that is to be packed: every file of it, by what it is."""

from __future__ import annotations

import itertools
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from odvae.running.errors import InputError
from odvae.running.text import counted, printable, why_no_file
from odvae.video.extensions import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

MEDIA_EXTENSIONS = (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS)

# Folders in which programs keep what is not for people: thumbnails, old versions, caches, deleted files.
_HIDDEN = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")

# In a folder that is not looked into, no more files than this are counted.
_COUNTED = 10_000

# How a Mac's side file of a file begins, on disks and in archives that cannot keep it inside.
_MAC_SIDE_FILE = "._"


@dataclass
class SourceFolder:
    """The files below a folder, by their path from it, in a fixed order."""

    root: Path
    media: list[str] = field(default_factory=list)
    """Videos, then images of one kind after the other: the samples of a shard should have the same members."""
    others: list[str] = field(default_factory=list)
    """Files of other kinds, captions among them."""
    odd: dict[str, str] = field(default_factory=dict)
    """What cannot be read as a file, and why."""

    def kinds(self, files: Sequence[str]) -> str:
        """Files by their extension, the most frequent first."""
        counts = Counter(f".{extension_of(file)}" if extension_of(file) else "no extension" for file in files)
        return ", ".join(f"{printable(kind)} ({count})" for kind, count in counts.most_common(10))


def extension_of(file: str) -> str:
    return os.path.splitext(file)[1].lower().lstrip(".")


def member_kind(file: str) -> str:
    """The member's name in the shard: mp4 for every video, whatever its container, as video2dataset has it."""
    return extension_of(file) if extension_of(file) in IMAGE_EXTENSIONS else "mp4"


def list_source(root: Path, outputs: Sequence[Path] = ()) -> SourceFolder:
    """Everything below a folder, but what lies in `outputs`. Links to folders are followed, each folder once.

    Raises InputError where it is no folder, or holds no video or image.
    """
    if (problem := why_no_file(root)) != "is a folder, not a file":
        raise InputError(f"source folder {root} {problem or 'is a file; give the folder it lies in'}")
    found, taken = SourceFolder(root), {os.path.realpath(output) for output in outputs}
    for name, is_folder in _walk(root, taken, found.odd):
        path = root / name
        if is_folder:
            if extension_of(name) in MEDIA_EXTENSIONS:
                found.odd[name] = "is a folder, not a file; what is in it was looked at"
        elif extension_of(name) in MEDIA_EXTENSIONS and os.path.basename(name).startswith(_MAC_SIDE_FILE):
            found.odd[name] = "is a Mac's side file, which holds no video"
        elif problem := why_no_file(path):
            found.odd[name] = problem
        else:
            (found.media if extension_of(name) in MEDIA_EXTENSIONS else found.others).append(name)
    if not found.media:
        allowed = ", ".join(f".{extension}" for extension in MEDIA_EXTENSIONS)
        there = f"; there are {found.kinds(found.others)}" if found.others else ""
        there += "".join(f"\n  {printable(name)} {problem}" for name, problem in list(found.odd.items())[:20])
        raise InputError(f"source folder {root} holds no video or image ({allowed}){there}")
    # By the parts of their paths, as a folder's listing goes; then videos first.
    found.media.sort(key=lambda name: Path(name).parts)
    found.media.sort(key=lambda name: (member_kind(name) != "mp4", member_kind(name)))
    found.others.sort()
    return found


def _walk(root: Path, taken: set[str], odd: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """(path from the root, whether it is a folder) of everything below it; `odd` gets what is not walked, and why.

    Folders come before links to folders, so that what lies in the tree has its own name and not a link's.
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
            elif entry.name.startswith(".") or entry.name in _HIDDEN:
                if os.path.realpath(entry.path) not in taken:
                    odd[name] = f"is a hidden folder ({_count_files(entry.path)}), which is not looked into"
            elif os.path.realpath(entry.path) not in taken:
                yield name, True
                if entry.is_symlink():
                    links.append(name)
                elif _is_new(root, name, seen, odd):
                    below.append(name)
        waiting += reversed(below)


def _count_files(folder: str) -> str:
    """How many files are below a folder, and how many of them could be taken."""
    files = itertools.islice((name for *_, names in os.walk(folder) for name in names), _COUNTED)
    extensions = [extension_of(name) for name in files]
    media = sum(extension in MEDIA_EXTENSIONS for extension in extensions)
    more = "at least " if len(extensions) == _COUNTED else ""
    return f"{more}{counted(len(extensions), 'file')}, {media} of them videos or images"


def _is_new(root: Path, folder: str, seen: dict[tuple[int, int], str], odd: dict[str, str]) -> bool:
    """Whether a folder, or a link to one, was not walked yet; that it is walked now is noted in `seen`."""
    try:
        identity = _identity(os.stat(root / folder))
    except OSError as error:
        odd[folder] = f"is a folder that cannot be looked into ({error.strerror})"
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
    except OSError:  # a link that leads to itself, say
        return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
