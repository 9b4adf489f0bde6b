"""Fast reading of tar headers: of tars that have nothing but ordinary files and folders, as nearly all shards.

`tarfile` takes 50 us a member. Here only what such tars have is understood; whatever else is found, rare or damaged,
is left to `tarfile`, so that the results and errors are always the same as its own.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import tarfile
from pathlib import Path
from zlib import adler32

from odvae.storage.open_file import open_file

BLOCK = tarfile.BLOCKSIZE

# Bytes that are read at once where the next header is near, as between small members, and where it is far.
_NEAR, _FAR = 1 << 20, 1 << 12

# How far behind the bytes that were read a header is still near.
_GAP = 1 << 16

# Name, numbers, size and the byte after it, time, checksum, all behind it.
_FIELDS = struct.Struct("100s24s11sB12s8s356s")

_ENCODING = sys.getfilesystemencoding()

_FILE, _OLD_FILE, _FOLDER, _PAX = b"0", b"\0", b"5", b"x"

# Entries of a pax header that have no influence on a member's name and extent; webdataset writes the time in one.
_PAX_ENTRY = re.compile(rb"(\d{1,9}) (?:mtime|atime|ctime|uid|gid|uname|gname)=[^\0\n]*\n")


def read_ordinary_tar(shard: Path) -> tuple[list[tuple[str, int, int]], int] | None:
    """The files of a tar as (name, offset, size), in order, and the position of its end mark.

    None for a tar with entries of another kind (links, sparse files, long names, ...), and for a damaged one.
    """
    with open_file(shard) as file:
        try:
            return _read(file)
        except (_OtherTarError, ValueError):
            return None


class _OtherTarError(Exception):
    """Only tarfile can tell what this tar has, or what is wrong with it."""


def _read(file: io.RawIOBase) -> tuple[list[tuple[str, int, int]], int]:
    files: list[tuple[str, int, int]] = []
    # Headers of ordinary files but for name, size and checksum, the same in nearly all -> the sum of these bytes.
    usual: dict[tuple[bytes, ...], int] = {}
    window, start = b"", 0
    position = 0
    after_pax = False
    while True:
        i = position - start
        if i + BLOCK > len(window):
            window, start, i = _read_at(file, position, _NEAR if i <= len(window) + _GAP else _FAR), position, 0
            if len(window) < BLOCK:
                raise _OtherTarError
        name_field, numbers, digits, end_of_size, time, checksum, behind = _FIELDS.unpack_from(window, i)
        rest = numbers, time, behind
        sum_of_rest = usual.get(rest)
        if (
            sum_of_rest is not None
            and not end_of_size
            and digits.isdigit()
            and checksum == b"%06o\0 " % (sum_of_rest + _sum(name_field) + _sum(digits))
        ):
            size = int(digits, 8)
            files.append((_text(name_field), position + BLOCK, size))
            position += BLOCK + size + -size % BLOCK
            after_pax = False
            continue
        block = window[i : i + BLOCK]
        if not block[:1].strip(b"\0") and block.count(0) == BLOCK:
            if after_pax:
                raise _OtherTarError
            return files, position
        total = _sum(block[:148]) + 8 * 32 + _sum(block[156:412]) + _sum(block[412:])  # the checksum's as spaces
        if total != _octal(block[148:156], 6):
            raise _OtherTarError
        _check_numbers(block)
        kind = block[156:157]
        position += BLOCK
        if kind in (_FILE, _OLD_FILE):
            size = _octal(block[124:136], 11)
            name = _name(block, kind)
            files.append((name, position, size))
            position += size + -size % BLOCK
            after_pax = False
            if kind == _FILE and not block[345]:
                usual[rest] = total - _sum(block[:100]) - _sum(block[124:136])
        elif kind == _FOLDER:
            after_pax = False
        elif kind == _PAX and not after_pax:
            size = _octal(block[124:136], 11)
            _check_pax(_read_at(file, position, size) if size < _NEAR else b"", size)
            position += size + -size % BLOCK
            after_pax = True
        else:
            raise _OtherTarError


def _read_at(file: io.RawIOBase, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size) or b""


def _octal(field: bytes, usual: int) -> int:
    """An octal number that ends at a NUL; `usual` digits in nearly all tars. Raises ValueError for others."""
    digits = field[:usual]
    if field[usual] or not digits.isdigit():
        digits = field.partition(b"\0")[0].strip(b" ")
        if not digits.isdigit():
            raise _OtherTarError
    return int(digits, 8)


def _sum(data: bytes) -> int:
    """The sum of at most 256 bytes: the lower half of adler32 is one more, modulo 65521, which they do not reach."""
    return (adler32(data) & 0xFFFF) - 1


def _check_numbers(block: bytes) -> None:
    """Leave a header to tarfile if any number in it is invalid, also those that do not matter here."""
    for first, end in ((100, 108), (108, 116), (116, 124), (136, 148), (329, 337), (337, 345)):
        try:
            tarfile.nti(block[first:end])  # type: ignore[attr-defined]
        except tarfile.HeaderError:
            raise _OtherTarError from None


def _name(block: bytes, kind: bytes) -> str:
    name = _text(block[:100])
    if kind == _OLD_FILE and name.endswith("/"):  # a folder, in the oldest format
        raise _OtherTarError
    return f"{_text(block[345:500])}/{name}" if block[345] else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(_ENCODING, "surrogateescape")


def _check_pax(entries: bytes, size: int) -> None:
    """Leave a pax header to tarfile unless its entries are well-formed and without influence here."""
    if len(entries) < size or not size:
        raise _OtherTarError
    at = 0
    while at < size:
        found = _PAX_ENTRY.match(entries, at)
        if found is None or found.end() - at != int(found[1]):
            raise _OtherTarError
        at = found.end()
