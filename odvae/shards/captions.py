"""Captions and classes of the videos in a folder, in whatever form the folder has them (docs/data.md lists the forms).

A video's captions come from the tables of the folder, the nearest first, and else from the text file beside it; or,
where a table is named by the settings, from that alone. What is there and not used is named too.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from odvae.running.errors import InputError
from odvae.running.files import parse_json
from odvae.running.text import check_is_file, decode_text, normalize_unicode, printable
from odvae.shards.facts import about_sample
from odvae.shards.samples import Sample
from odvae.shards.source_folder import MEDIA_EXTENSIONS, SourceFolder, extension_of
from odvae.tables.caption_table import CaptionTable, is_caption_list, is_list_of_files
from odvae.tables.columns import Columns, is_valid_text
from odvae.tables.formats import table_kind
from odvae.tables.row_matching import FileIndex
from odvae.tables.rows import column_name

# Tables that come before others. One of these that is broken is an error, as is one whose columns are right.
USUAL_TABLES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv", "captions.json")
_BESIDE = ("txt", "caption", "captions", "cap", "prompt", "json")
_BESIDE_FOLDERS = ("captions", "caption", "labels", "texts", "text", "txt", "prompts", "prompt")

# Why a file of the folder is neither packed nor read for captions.
NO_CAPTIONS = "a table without captions"
NO_ROW = "a table without a row for a file here"
NO_VIDEO_OF_ITS_NAME = "a text with no video of its name"
NOT_NEEDED = "captions that are not used"
NOT_TAKEN = "of a kind that is not taken"


@dataclass(frozen=True)
class Description:
    """What is said of one video."""

    captions: tuple[str, ...] = ()
    """None of them empty, each once; the first stands for all where one is wanted."""
    label: str | None = None

    @property
    def caption(self) -> str:
        return self.captions[0] if self.captions else ""


class CaptionReader:
    """The captions of a folder's videos. `named` is the table that the settings name, if they do."""

    def __init__(self, source: SourceFolder, named: Path | None = None, columns: Columns | None = None) -> None:
        self.source, self.named, self.columns = source, named, columns or Columns()
        self.tables: list[CaptionTable] = []
        self._beside = _texts_beside(source)
        self._folders_with_a_list = {os.path.dirname(name) for name in source.others if is_list_of_files(name)}
        self._tables_of: dict[str, list[CaptionTable]] = defaultdict(list)
        self._why_unused: dict[str, tuple[str, str]] = {}
        self._texts_used: set[str] = set()
        self._described: set[str] = set()
        if named is not None:
            check_is_file(named, "caption table")

    @property
    def inputs(self) -> list[Path]:
        """The files that captions may come from."""
        if self.named is not None:
            return [self.named]
        beside = {text for texts in self._beside.values() for text in texts}
        return [self.source.root / name for name in (*self._candidates(), *sorted(beside))]

    def open(self) -> None:
        """Read the tables. Raises InputError where one is broken."""
        index = FileIndex(self.source.root, self.source.media, MEDIA_EXTENSIONS)
        if self.named is not None:
            self._keep(CaptionTable(self.named, index, self.columns).read())
            return
        for name in self._candidates():
            table = CaptionTable(self.source.root / name, index, self.columns, name)
            try:
                table.read()
            except InputError as error:
                if table.is_known or os.path.basename(name) in USUAL_TABLES:
                    raise
                self._why_unused[name] = NO_CAPTIONS, str(error).removeprefix(str(table.path)).strip(" ,:")
                continue
            if table.files:
                self._keep(table)
            else:
                self._why_unused[name] = NO_ROW, f"has {table.rows} rows, none of a file here"

    def find(self, file: str) -> Description:
        """The captions and the class of a video. Raises InputError where they cannot be read, or told from others'."""
        label = None
        for description in self._descriptions(file):
            label = description.label if label is None else label
            if description.captions:
                self._described.add(file)
                return Description(description.captions, label)
        self._described.add(file)
        return Description((), label)

    @property
    def notes(self) -> list[str]:
        """What a person should know of the tables, a sentence each."""
        notes = []
        for table in self.tables:
            if table.rows_without_caption.count:
                notes.append(f"{table.name}: {table.rows_without_caption.describe('rows have no caption')}")
            if table.spoken_of_in_parts:
                shown = ", ".join(map(printable, table.spoken_of_in_parts[:3]))
                notes.append(
                    f"{table.name}: {len(table.spoken_of_in_parts)} videos are whole, and their captions are of parts "
                    f"of them ({shown}); cut them first, where each caption should go with its part"
                )
        return notes

    def left_over(self) -> Iterator[tuple[str, str, str]]:
        """The folder's files that are neither videos nor gave a caption: (name, reason, what exactly)."""
        used = {os.path.realpath(table.path) for table in self.tables if table.used}
        beside = {text: file for file, texts in self._beside.items() for text in texts}
        lists_used = {os.path.dirname(path) for path in used if is_caption_list(path)}
        for name in self.source.others:
            path = os.path.realpath(self.source.root / name)
            is_list = os.path.dirname(path) in lists_used and is_list_of_files(path)
            if name in self._texts_used or path in used or is_list:
                continue
            if name in self._why_unused:
                yield name, *self._why_unused[name]
            elif self.named is not None and (name in beside or self._is_table(name)):
                yield name, NOT_NEEDED, f"is not read, since captions={self.named} is"
            elif name in beside and beside[name] not in self._described:
                yield name, NOT_NEEDED, f"is not needed: {printable(beside[name])} is left out"
            elif name in beside or any(name == table.name for table in self.tables):
                yield name, NOT_NEEDED, "is not needed: its videos have captions from elsewhere, or are left out"
            elif extension_of(name) in _BESIDE[:-1]:
                yield name, NO_VIDEO_OF_ITS_NAME, "is a text, but no video has its name"
            else:
                yield name, NOT_TAKEN, f"is {_kind_of(name)}, which is not taken"

    def _keep(self, table: CaptionTable) -> None:
        self.tables.append(table)
        for file in table.files:
            self._tables_of[file].append(table)

    def _descriptions(self, file: str) -> Iterator[Description]:
        for table in sorted(self._tables_of.get(file, ()), key=lambda table: _distance(table, file)):
            captions, label = table.find(file)
            yield Description(_each_once(captions), label)
        if self.named is None:
            for text in self._beside.get(file, ()):
                description = read_text_beside(self.source.root / text, self.columns)
                if description != Description():
                    self._texts_used.add(text)
                yield description

    def _candidates(self) -> list[str]:
        beside = {text for texts in self._beside.values() for text in texts}
        return [name for name in self.source.others if name not in beside and self._is_table(name)]

    def _is_table(self, name: str) -> bool:
        if is_caption_list(name):
            return os.path.dirname(name) in self._folders_with_a_list
        return table_kind(PurePosixPath(name)) is not None


def _kind_of(name: str) -> str:
    return f"a .{extension_of(name)} file" if extension_of(name) else "a file without extension"


def _distance(table: CaptionTable, file: str) -> tuple:
    """How far a table is from a file: tables of the folders that hold the file come first, the nearest before others;
    of one folder those of the usual names."""
    above = not table.folder or f"{file}/".startswith(f"{table.folder}/")
    name = os.path.basename(table.name)
    usual = USUAL_TABLES.index(name) if name in USUAL_TABLES else len(USUAL_TABLES)
    return not above, -len(PurePosixPath(table.folder).parts), usual, table.name


def _texts_beside(source: SourceFolder) -> dict[str, list[str]]:
    """Video -> the files that may hold its caption, by their names: the first that does counts."""
    there: dict[str, str] = {}
    for name in source.others:
        if extension_of(name) in _BESIDE:
            there[normalize_unicode(os.path.splitext(name)[0]) + f".{extension_of(name)}"] = name
    found: dict[str, list[str]] = {}
    for file in source.media if there else ():
        folder, name = os.path.split(normalize_unicode(file))
        folders = [folder, *(os.path.join(folder, other) for other in _BESIDE_FOLDERS)]
        if folder:
            folders += [os.path.join(os.path.dirname(folder), other) for other in _BESIDE_FOLDERS]
        stems = (os.path.splitext(name)[0], name)
        wanted = (os.path.join(place, f"{stem}.{end}") for place in folders for stem in stems for end in _BESIDE)
        if texts := [there[text] for text in wanted if text in there]:
            found[file] = texts
    return found


def read_text_beside(path: Path, columns: Columns | None = None) -> Description:
    """The caption in a text file of a video, or the captions and the class in a .json; the InputError where it cannot
    be read is the end of a sentence about the video."""
    name = f"its caption {printable(path.name)}"
    try:
        text = decode_text(path.read_bytes(), name)
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from None
    if path.suffix.lower() != ".json":
        return Description(_each_once([" ".join(text.split())]))
    about = parse_json(text, name) if text.strip() else None
    if not isinstance(about, dict):
        about = {"caption": about} if isinstance(about, str | list) else {}
    meaning = (columns or Columns()).read({column_name(key): value for key, value in about.items()})
    if not meaning.is_text:
        raise InputError(f"{name} holds half a character (a lone surrogate)")
    return Description(_each_once(meaning.captions), meaning.label)


def captions_in(sample: Sample) -> tuple[str, ...]:
    """All captions of a shard's sample: its text, then those in the list `captions` of its .json.

    A text that is empty says that there is none; where there is no text at all, the .json's `caption` counts. Raises
    InputError where the text is not UTF-8.
    """
    text = sample.read_text() if "txt" in sample.members else None
    if text == "":
        return ()
    about = about_sample(sample)
    more = about.get("captions")
    found = [about.get("caption") if text is None else text, *(more if isinstance(more, list) else [])]
    return _each_once(one for one in found if isinstance(one, str) and is_valid_text(one))


def _each_once(captions: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(caption for caption in captions if caption.strip()))
