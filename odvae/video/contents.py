"""Detects by the first bytes what an undecodable file is, such as an HTML page of a failed download."""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import BinaryIO

_BYTES_READ = 4096
_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (git lfs pull fetches it)",
    b"<!doctype html": "a web page (HTML), as from a failed download",
    b"<html": "a web page (HTML), as from a failed download",
    b"<?xml": "XML, as from a failed download",
    b"<error": "XML, as from a failed download",
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
    """The end of a sentence about a file that cannot be decoded, "; it is ..."; empty if its type is unknown."""
    beginning = _beginning(source)
    start = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for known, what in _BEGINNINGS.items():
        if start.startswith(known):
            return f"; it is {what}"
    if beginning[257:262] == b"ustar":
        return "; it is a tar archive: unpack it first"
    if len(beginning) > 16 and not beginning.strip(b"\0"):
        return "; it has only zeros, like an unfinished download"
    return "; it is text" if _is_text(beginning) else ""


def _beginning(source: bytes | Path | BinaryIO | io.RawIOBase) -> bytes:
    if isinstance(source, bytes):
        return source[:_BYTES_READ]
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return file.read(_BYTES_READ)
    source.seek(0)
    return source.read(_BYTES_READ) or b""


def _is_text(beginning: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning)  # the last character may be truncated
    except UnicodeDecodeError:
        return False
    return bool(text.strip()) and all(letter.isprintable() or letter.isspace() for letter in text)
