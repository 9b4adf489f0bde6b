"""Reading of UTF-8 text files with clear errors for other encodings; printable file names; words of messages."""

from __future__ import annotations

import difflib
import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from odvae.running.errors import InputError

# Byte order marks of other Unicode encodings, longest first.
_OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_FIRST_OF_MARKS = tuple({mark[:1] for mark in _OTHER_MARKS})
_UTF8_MARK = b"\xef\xbb\xbf"
_SHOWN = 6  # names in a message


def read_text_file(path: str | Path, what: str = "") -> str:
    """The text of a UTF-8 file, without a byte order mark; line ends are as in the file.

    Raises InputError if the file cannot be read or is not UTF-8. The message names it by `what` (for example
    "--prompts") and its path.
    """
    named = f"{what} {path}" if what else str(path)
    check_is_file(path, what)
    try:
        return decode_text(Path(path).read_bytes(), named)
    except OSError as error:
        raise InputError(f"{named} cannot be read: {error.strerror}") from None


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8 bytes. Raises InputError, which names them `name`, if they are not UTF-8."""
    if other := other_encoding(data):
        raise InputError(f"{name} is {other}, not UTF-8: save it as UTF-8 (iconv -f {other} -t UTF-8)")
    try:
        return data.removeprefix(_UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} is not UTF-8 ({error.reason} at byte {error.start}, line {line}): save it as UTF-8 (from Latin-1: "
            "iconv -f LATIN1 -t UTF-8)"
        ) from None


def other_encoding(data: bytes) -> str:
    """UTF-16 or UTF-32, if the bytes are such a text (judged by a byte order mark or many zeros); otherwise empty."""
    beginning = data[:1024]
    for mark, name in _OTHER_MARKS.items() if beginning.startswith(_FIRST_OF_MARKS) else ():
        if beginning.startswith(mark):
            return name
    zeros = beginning.count(0)
    if zeros >= 0.7 * len(beginning) > 0:
        return "UTF-32"
    return "UTF-16" if zeros >= 0.3 * len(beginning) > 0 else ""


def check_is_file(path: str | Path, what: str = "") -> None:
    """Raise InputError unless the path is a readable file; `what` is put before the path in the message."""
    if problem := why_no_file(path):
        raise InputError(f"{what} {path} {problem}".strip())


def why_no_file(path: str | Path) -> str:
    """Why a path is not a readable file, as the end of a sentence ("is a folder"); empty if it is one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a broken link" if os.path.islink(path) else "does not exist"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    kinds = {
        stat.S_ISDIR: "is a folder, not a file",
        stat.S_ISSOCK: "is a socket, not a file",
        stat.S_ISFIFO: "is a pipe, not a file",
        stat.S_ISBLK: "is a device, not a file",
        stat.S_ISCHR: "is a device, not a file",
    }
    for is_kind, what in kinds.items():
        if is_kind(mode):
            return what
    return "" if os.access(path, os.R_OK) else "cannot be read (permission denied)"


def valid_unicode(name: str) -> str:
    """A name in which bytes that are not UTF-8 (lone surrogates in Python) are escaped as \\xff."""
    return "".join(_escaped(character) if unicodedata.category(character) == "Cs" else character for character in name)


def printable(name: str) -> str:
    """A name on one line: bytes that are not UTF-8, control characters and line breaks are escaped."""
    if name.isprintable():  # as nearly all are
        return name
    return "".join(
        _escaped(character) if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") else character
        for character in name
    )


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode represents it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def did_you_mean(word: str, allowed: Sequence[str]) -> str:
    """ "did you mean --small?" for `--smal`: the names that begin so, otherwise the nearest; empty if none is near."""
    near = [name for name in allowed if name.startswith(word)] or difflib.get_close_matches(word, allowed, n=1)
    return f"did you mean {' or '.join(near[:3])}?" if near else ""


def shorten(names: Iterable[str]) -> str:
    """The first few names and the number of the others: "a, b, c and 4 more"; "none" of no names."""
    names = list(names)
    shown = ", ".join(names[:_SHOWN]) or "none"
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def counted(count: int, noun: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def normalize_unicode(name: str) -> str:
    """A name in Unicode's normal form NFC, in which names that look the same are equal."""
    return unicodedata.normalize("NFC", name)
