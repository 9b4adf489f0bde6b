"""What a file really is that cannot be decoded, by how it begins: failed downloads look alike everywhere."""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import BinaryIO

_LOOKED_AT = 4096
_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (git lfs pull fetches it)",
    b"<!doctype html": "a web page (HTML), as of a failed download",
    b"<html": "a web page (HTML), as of a failed download",
    b"<?xml": "XML, as of a failed download",
    b"<error": "XML, as of a failed download",
    b"#extm3u": "a playlist of other files (ffmpeg -i FILE -c copy FILE.mp4 fetches them)",
    b"pk\x03\x04": "a zip archive: unpack it first",
    b"rar!": "an archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "an archive: unpack it first",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"bzh": "an archive: unpack it first",
    b"\xfd7zxz": "an archive: unpack it first",
    b"%pdf": "a PDF",
}


def describe_contents(source: bytes | Path | BinaryIO | io.RawIOBase) -> str:
    """ "; it is ...", the end of a sentence about a file that cannot be decoded; empty where nothing is known."""
    beginning = _beginning(source)
    start = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for known, what in _BEGINNINGS.items():
        if start.startswith(known):
            return f"; it is {what}"
    if beginning[257:262] == b"ustar":
        return "; it is a tar archive: unpack it first"
    if len(beginning) > 16 and not beginning.strip(b"\0"):
        return "; it is only zeros, as of a download that was not finished"
    return "; it is text" if _is_text(beginning) else ""


def _beginning(source: bytes | Path | BinaryIO | io.RawIOBase) -> bytes:
    if isinstance(source, bytes):
        return source[:_LOOKED_AT]
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return file.read(_LOOKED_AT)
    source.seek(0)
    return source.read(_LOOKED_AT) or b""


def _is_text(beginning: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning)  # whose last letter may be cut
    except UnicodeDecodeError:
        return False
    return bool(text.strip()) and all(letter.isprintable() or letter.isspace() for letter in text)
