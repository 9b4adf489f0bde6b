"""Text that people and other programs wrote, and the names of files: UTF-8, or an error that names the file."""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path

from odvae.running.errors import InputError

# How a text begins that is in another encoding of Unicode; the longer ones first.
_OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_UTF8_MARK = b"\xef\xbb\xbf"


def read_text_file(path: str | Path, what: str = "") -> str:
    """The text of a UTF-8 file, without the mark some editors begin it with; line ends are as in the file.

    Raises InputError that names the file (as `what`, say "--prompts", and its path) where there is none that can be
    read, or it is not UTF-8.
    """
    named = f"{what} {path}" if what else str(path)
    check_is_file(path, what)
    try:
        return decode_text(Path(path).read_bytes(), named)
    except OSError as error:
        raise InputError(f"{named} cannot be read: {error.strerror}") from None


def decode_text(data: bytes, name: str) -> str:
    """The text in UTF-8 bytes; `name` stands for them in the InputError where they are something else."""
    if other := other_encoding(data):
        raise InputError(f"{name} is {other}, not UTF-8: save it as UTF-8 (iconv -f {other} -t UTF-8)")
    try:
        return data.removeprefix(_UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} is not UTF-8 ({error.reason} at byte {error.start}, line {line}): save it as UTF-8, "
            "from Latin-1 by iconv -f LATIN1 -t UTF-8"
        ) from None


def other_encoding(data: bytes) -> str:
    """UTF-16 or UTF-32 where bytes are a text in it, by their mark or by their zeros; else empty."""
    for mark, name in _OTHER_MARKS.items():
        if data.startswith(mark):
            return name
    beginning = data[:1024]
    zeros = beginning.count(0)
    if zeros >= 0.7 * len(beginning) > 0:
        return "UTF-32"
    return "UTF-16" if zeros >= 0.3 * len(beginning) > 0 else ""


def check_is_file(path: str | Path, what: str = "") -> None:
    """Raise InputError that says what lies at a path where that is no file that can be read."""
    if problem := why_no_file(path):
        raise InputError(f"{what} {path} {problem}".strip())


def why_no_file(path: str | Path) -> str:
    """What lies at a path, as the end of a sentence ("is a folder"); empty where it is a file that can be read."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a link to what does not exist" if os.path.islink(path) else "does not exist"
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
    return "" if os.access(path, os.R_OK) else "may not be read (permission denied)"


def valid_unicode(name: str) -> str:
    """A name with the bytes that are not UTF-8 (which Python keeps as lone surrogates) escaped, as \\xff."""
    return "".join(_escaped(character) if unicodedata.category(character) == "Cs" else character for character in name)


def printable(name: str) -> str:
    """A name on one line: what is not UTF-8, control characters and line breaks are escaped."""
    return "".join(
        _escaped(character) if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") else character
        for character in name
    )


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def same_text(name: str) -> str:
    """A name in the one form of Unicode (NFC) in which names that look the same are the same."""
    return unicodedata.normalize("NFC", name)
