"""Captions and classes of the videos in a folder, from tables or text files (docs/data.md lists the formats).

A video's captions come from the folder's tables, the nearest first, otherwise from the text file next to it; if the
settings name a table, only from that table. Unused files are reported.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from odvae.packing.file_kinds import describe_kind
from odvae.packing.source_folder import MEDIA_EXTENSIONS, SourceFolder, extension_of
from odvae.packing.texts_beside import TEXT_EXTENSIONS, Description, find_texts_beside, read_text_beside
from odvae.running.account import BAD_CAPTION, shown_names
from odvae.running.errors import InputError
from odvae.running.text import check_is_file, counted, printable, valid_unicode
from odvae.shards.captions import each_once
from odvae.tables.caption_table import CaptionTable, CountedNames, NoSuchColumnsError, is_caption_list, is_list_of_files
from odvae.tables.columns import Columns
from odvae.tables.formats import table_kind
from odvae.tables.row_matching import FileIndex

# Tables that are preferred to others. A broken one is an error; other broken tables are errors only if their columns
# are those of a caption table.
USUAL_TABLES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv", "captions.json")

# Why a file of the folder is neither packed nor read for captions.
BROKEN_TABLE = "a table that cannot be read"
NO_CAPTIONS = "a table without captions"
NO_ROW = "a table without a row for these files"
EMPTY_TEXT = "a text without a caption"
NO_VIDEO_OF_ITS_NAME = "a text without a video of the same name"
NOT_NEEDED = "captions that are not used"
NOT_TAKEN = "unsupported file type"


class CaptionReader:
    """Finds the captions of a folder's videos. `named` is the table named in the settings, if any."""

    def __init__(self, source: SourceFolder, named: Path | None = None, columns: Columns | None = None) -> None:
        self.source, self.named, self.columns = source, named, columns or Columns()
        self.tables: list[CaptionTable] = []
        self._beside = find_texts_beside(source)
        self._folders_with_a_list = {os.path.dirname(name) for name in source.others if is_list_of_files(name)}
        self._tables_of: dict[str, list[CaptionTable]] = defaultdict(list)
        self._why_unused: dict[str, tuple[str, str]] = {}
        self._texts_used: set[str] = set()
        self._texts_empty: set[str] = set()
        self._texts_broken: set[str] = set()
        self._tables_before_texts: dict[str, str] = {}
        self._other_captions: dict[str, CountedNames] = defaultdict(CountedNames)
        self._described: set[str] = set()
        if named is not None:
            check_is_file(named, "caption table")

    def inputs_of(self, files: Sequence[str]) -> list[Path]:
        """The files from which the captions of these videos may be read."""
        if self.named is not None:
            return [self.named]
        beside = {text for file in files for text in self._beside.get(file, ())}
        return [self.source.root / name for name in (*self._candidates(), *sorted(beside))]

    def open(self) -> None:
        """Read the tables. Raises InputError if one is broken, or if none has the columns named in the settings."""
        lists = [name for name in self.source.others if is_list_of_files(name)]
        self.source.ensure([*self._candidates(), *lists])
        index = FileIndex(self.source.root, self.source.media, MEDIA_EXTENSIONS)
        if self.named is not None:
            table = CaptionTable(self.named, index, self.columns).read()
            if not table.files:
                raise InputError(f"{self.named} {printable(self._no_row(table))}")
            self._keep(table)
            return
        for name in self._candidates():
            table = CaptionTable(self.source.root / name, index, self.columns, name)
            try:
                table.read()
            except InputError as error:
                if table.is_known or os.path.basename(name) in USUAL_TABLES:
                    raise
                reason = NO_CAPTIONS if isinstance(error, NoSuchColumnsError) else BROKEN_TABLE
                exactly = str(error).removeprefix("caption table ").removeprefix(str(table.path)).strip(" ,:")
                self._why_unused[name] = reason, exactly
                continue
            if table.files:
                self._keep(table)
            else:
                self._why_unused[name] = NO_ROW, self._no_row(table)
        if self.columns != Columns() and not self.tables and not self._beside:
            raise InputError(
                f"no table in {self.source.root} has {self.columns.allowed()} and a row for a file in it"
                + "".join(f"\n  {printable(name)}: {why}" for name, (_, why) in list(self._why_unused.items())[:20])
            )

    def find(self, file: str) -> Description:
        """The captions and the class of a video. Raises InputError if they cannot be read or are ambiguous."""
        self._described.add(file)
        found, label = None, None
        for table in sorted(self._tables_of.get(file, ()), key=lambda table: _distance(table, file)):
            if found is not None:
                if others := set(table.captions_of(file)).difference(found):
                    self._other_captions[table.name].add(file, next(iter(others)))
                continue
            captions, its_label = table.find(file)
            label = its_label if label is None else label
            found = each_once(captions) or None
            if found and file in self._beside:
                self._tables_before_texts[file] = table.name
        texts = self._beside.get(file, ()) if found is None and self.named is None else ()
        if texts:
            self.source.ensure_beside(file, self._beside)
        for text in texts:
            try:
                description = read_text_beside(self.source.root / text, self.columns)
            except InputError:
                self._texts_broken.add(text)
                raise
            (self._texts_empty if description == Description() else self._texts_used).add(text)
            label = description.label if label is None else label
            if description.captions:
                return Description(description.captions, label)
        return Description(found or (), label)

    def describe_tables(self) -> list[dict[str, Any]]:
        """For each table that is read: counts of used rows, and the rows that are not used."""
        return [
            {
                "name": valid_unicode(table.name),
                "columns": dict(table.text_columns.most_common()),
                "rows": table.rows,
                "videos": len(table.used),
                "rows_without_video": table.rows_without_file.to_json(),
                "rows_without_caption": table.rows_without_caption.to_json(),
                "captions_not_used": self._other_captions[table.name].to_json(),
            }
            for table in self.tables
        ]

    @property
    def notes(self) -> list[str]:
        """Sentences about the tables for the reader of the report."""
        notes = []
        for table in self.tables:
            if table.rows_without_caption.count:
                notes.append(f"{table.name}: rows without a caption: {table.rows_without_caption.shown()}")
            if others := self._other_captions[table.name]:
                notes.append(
                    f"{table.name}: videos with another caption in this table, which is not used, because another "
                    f"table is preferred: {others.shown()}; captions=FILE reads only one table"
                )
            if several := table.of_several:
                notes.append(
                    f"{table.name}: videos with the same name in several folders, which its rows do not distinguish, "
                    f"so each got the caption: {shown_names(several)}; add the folders to the rows"
                )
            if parts := table.captioned_in_parts:
                notes.append(
                    f"{table.name}: uncut videos whose captions describe parts of them: {len(parts)} "
                    f"({shown_names(parts)}); cut them first to give each part its caption"
                )
        return notes

    def left_over(self) -> Iterator[tuple[str, str, str]]:
        """The folder's files that are not videos and were not used for captions: (name, reason, details)."""
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
                yield name, NOT_NEEDED, f"is not read, because captions={self.named} is"
            elif name in beside and beside[name] not in self._described:
                yield name, NOT_NEEDED, f"is not needed: {printable(beside[name])} is left out"
            elif name in self._texts_empty:
                yield name, EMPTY_TEXT, "is empty" if self._is_blank(name) else "holds no caption"
            elif name in self._texts_broken:
                yield name, BAD_CAPTION, f"cannot be read: {printable(beside[name])} is left out"
            elif name in beside and (table_name := self._tables_before_texts.get(beside[name])):
                yield name, NOT_NEEDED, f"is not needed: {printable(beside[name])} has a caption in {table_name}"
            elif name in beside or any(name == table.name for table in self.tables):
                yield name, NOT_NEEDED, "is not needed: its videos have captions from other files, or are left out"
            elif is_caption_list(name):
                yield name, NO_VIDEO_OF_ITS_NAME, "is a list of captions without a videos.txt in its folder"
            elif extension_of(name) in TEXT_EXTENSIONS:
                yield name, NO_VIDEO_OF_ITS_NAME, "is a text, but there is no video of the same name"
            else:
                yield name, NOT_TAKEN, describe_kind(name)

    def _keep(self, table: CaptionTable) -> None:
        self.tables.append(table)
        for file in table.files:
            self._tables_of[file].append(table)

    def _no_row(self, table: CaptionTable) -> str:
        rows = table.rows_without_file
        if not rows.count:
            return "has no rows"
        named = ", ".join(f"{where}: {file}" for where, file in list(rows.names.items())[:2])
        return f"has {counted(rows.count, 'row')}, none of a file here ({named}; here is {self.source.media[0]})"

    def _is_blank(self, name: str) -> bool:
        self.source.ensure([name])
        return not (self.source.root / name).read_bytes().strip()

    def _candidates(self) -> list[str]:
        beside = {text for texts in self._beside.values() for text in texts}
        return [name for name in self.source.others if name not in beside and self._is_table(name)]

    def _is_table(self, name: str) -> bool:
        if is_caption_list(name):
            return os.path.dirname(name) in self._folders_with_a_list
        return table_kind(PurePosixPath(name)) is not None


def _distance(table: CaptionTable, file: str) -> tuple:
    """Sort key of tables for a file: tables in the file's parent folders first, the nearest first, then those with the
    usual names."""
    above = not table.folder or f"{file}/".startswith(f"{table.folder}/")
    name = os.path.basename(table.name)
    usual = USUAL_TABLES.index(name) if name in USUAL_TABLES else len(USUAL_TABLES)
    return not above, -len(PurePosixPath(table.folder).parts), usual, table.name
