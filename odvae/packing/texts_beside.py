"""Captions in text files next to the videos: which file belongs to which video, and reading them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from odvae.packing.source_folder import SourceFolder, extension_of
from odvae.running.errors import InputError
from odvae.running.files import parse_json
from odvae.running.text import decode_text, normalize_unicode, printable
from odvae.shards.captions import each_once
from odvae.tables.cells import one_line
from odvae.tables.columns import Columns
from odvae.tables.rows import named

TEXT_EXTENSIONS = ("txt", "caption", "captions", "cap", "prompt")
_EXTENSIONS = (*TEXT_EXTENSIONS, "json")
_FOLDERS = ("captions", "caption", "labels", "texts", "text", "txt", "prompts", "prompt", "annotations")


@dataclass(frozen=True)
class Description:
    """The captions and the class of a video."""

    captions: tuple[str, ...] = ()
    """Not empty, without duplicates; the first is used where only one is needed."""
    label: str | None = None

    @property
    def caption(self) -> str:
        return self.captions[0] if self.captions else ""


def find_texts_beside(source: SourceFolder) -> dict[str, list[str]]:
    """Video -> files that may have its caption, by their names, in order of preference.

    They are next to the video, or in a folder for texts that is inserted into its path or replaces one of its folders:
    for `videos/x/a.mp4` these are `videos/x/a.txt`, `videos/x/captions/a.txt` and `captions/x/a.txt`.
    """
    there: dict[str, str] = {}
    for name in source.others:
        if extension_of(name) in _EXTENSIONS:
            there[normalize_unicode(os.path.splitext(name)[0]) + f".{extension_of(name)}"] = name
    folders = {part for text in there for part in PurePosixPath(text).parts[:-1]}.intersection(_FOLDERS)
    text_folders = [folder for folder in _FOLDERS if folder in folders]
    found: dict[str, list[str]] = {}
    for file in source.media if there else ():
        folder, name = os.path.split(normalize_unicode(file))
        stems = (os.path.splitext(name)[0], name)
        places = _places(folder, text_folders)
        wanted = (os.path.join(place, f"{stem}.{end}") for place in places for stem in stems for end in _EXTENSIONS)
        if texts := [there[text] for text in wanted if text in there]:
            found[file] = texts
    return found


def _places(folder: str, text_folders: Iterable[str]) -> list[str]:
    parts = PurePosixPath(folder).parts
    places = [folder, *(os.path.join(folder, other) for other in text_folders)]
    for other in text_folders:
        for i in reversed(range(len(parts))):
            places += ["/".join((*parts[:i], other, *parts[i + 1 :])), "/".join((*parts[:i], other, *parts[i:]))]
    return list(dict.fromkeys(places))


def read_text_beside(path: Path, columns: Columns | None = None) -> Description:
    """The caption in a text file of a video, or the captions and the class in a .json. If it cannot be read, the
    InputError's message continues a sentence about the video."""
    name = f"its caption {printable(path.name)}"
    try:
        text = decode_text(path.read_bytes(), name)
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from None
    if path.suffix.lower() != ".json":
        return Description(each_once([one_line(text)]))
    about = parse_json(text, name) if text.strip() else None
    if not isinstance(about, dict):
        about = {"caption": about} if isinstance(about, str | list) else {}
    meaning = (columns or Columns()).read(named(about))
    if not meaning.is_text:
        raise InputError(f"{name} contains an invalid character (a lone surrogate)")
    return Description(each_once(meaning.captions), meaning.label)
