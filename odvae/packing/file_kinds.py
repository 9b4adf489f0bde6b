"""Descriptions of unsupported file types by extension, with advice on how to convert them."""

from __future__ import annotations

import os

_ADVICE = {
    "convert it to a supported format: ffmpeg -i FILE FILE.mp4": (
        "swf", "rm", "rmvb", "f4v", "ogg", "ogm", "divx", "dv", "dav", "mod", "tod", "qt", "mpe", "m1v", "mp2v", "mpv",
        "y4m", "h264", "264", "h265", "265", "hevc", "ivf", "obu", "av1", "mjpeg", "mjpg", "wtv", "nut", "amv", "r3d",
        "braw", "insv", "lrv", "apng",
    ),
    "convert it to JPEG or PNG": ("heic", "heif", "jxl", "jp2", "psd", "svg", "exr", "dng", "cr2", "nef", "arw", "raw"),
    "unpack it first": ("zip", "tar", "gz", "tgz", "bz2", "xz", "zst", "7z", "rar"),
    "save the table as CSV in UTF-8": ("xlsx", "xls", "ods", "numbers", "sqlite", "sqlite3"),
    "pickled files are not read, for they can run any code": (
        "pkl", "pickle", "pt", "pth", "npy", "npz", "joblib",
    ),
    "it is audio without video": ("mp3", "wav", "flac", "aac", "m4a", "opus", "wma", "aif", "aiff", "mka"),
    "subtitles are not captions of the video": ("srt", "vtt", "ass", "ssa", "sub", "sbv", "lrc"),
    "its download is not finished": ("part", "crdownload", "download", "tmp", "ytdl", "aria2", "partial", "incomplete"),
}  # fmt: skip
_ADVICE_OF = {extension: advice for advice, extensions in _ADVICE.items() for extension in extensions}


def describe_kind(name: str) -> str:
    """Description of an unsupported file, as the end of a sentence."""
    extension = os.path.splitext(name)[1].lower().lstrip(".")
    if not extension:
        return "is a file without extension, which is not supported"
    advice = _ADVICE_OF.get(extension)
    return f"is a .{extension} file, which is not supported" + (f": {advice}" if advice else "")
