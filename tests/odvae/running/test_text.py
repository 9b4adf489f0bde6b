"""Reading of text files and names with any encoding: results and errors."""

import os
import socket

import pytest

from ldm.experiment import Experiment
from odvae.running.errors import InputError
from odvae.running.files import read_json
from odvae.running.settings import load_settings
from odvae.running.text import check_is_file, normalize_unicode, printable, read_text_file, shorten, valid_unicode

TEXT = "run: runs/près\nseed: 3\n"


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "x").write_text(TEXT, encoding="utf-8-sig")
    assert read_text_file(tmp_path / "x") == TEXT
    assert load_settings(Experiment, tmp_path / "x").run == "runs/près"


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "is UTF-16, not UTF-8"),
        ("utf-16-le", "is UTF-16, not UTF-8"),
        ("utf-16-be", "is UTF-16, not UTF-8"),
        ("utf-32", "is UTF-32, not UTF-8"),
        ("latin-1", r"is not UTF-8 \(invalid continuation byte at byte 12, line 1\)"),
        ("cp1252", "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("read", [read_text_file, read_json, lambda path: load_settings(Experiment, path)])
def test_any_other_encoding_is_an_error_that_names_the_file(tmp_path, encoding, message, read):
    path = tmp_path / "x.yaml"
    path.write_bytes(TEXT.encode(encoding))
    with pytest.raises(InputError, match=rf"x\.yaml {message}"):
        read(path)


@pytest.mark.parametrize(
    "text", ["run: !!set {a}", "seed: 2024-01-01: x", "seed: " + "9" * 5000, "[" * 5000, "a: [1, 2\n"]
)
def test_an_invalid_config_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=r"x\.yaml"):
        load_settings(Experiment, tmp_path / "x.yaml")


def test_a_path_that_is_not_a_file_is_an_error_that_names_what_it_is(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for name, message in {
            "nowhere": "does not exist",
            "folder": "is a folder",
            "dangling": "is a broken link",
            "loop": "cannot be opened",
            "pipe": "is a pipe",
            "socket": "is a socket",
            "x" * 300: "cannot be opened",
            "zero\0byte": "cannot be opened",
        }.items():
            with pytest.raises(InputError, match=rf"^--image .*{message}"):
                check_is_file(tmp_path / name, "--image")
    with pytest.raises(InputError, match=r"config file .* is a folder"):
        load_settings(Experiment, tmp_path / "folder")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("secret")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(InputError, match="x cannot be read"):
        check_is_file(tmp_path / "x")


def test_printable_names_are_on_one_line_and_lose_nothing():
    name = os.fsdecode(b"caf\xe9 \n\x1b[31m.mp4")
    assert printable(name) == "caf\\xe9 \\n\\x1b[31m.mp4"
    assert valid_unicode(name) == "caf\\xe9 \n\x1b[31m.mp4"
    for good in ("a b.mp4", "ゴリラ.mp4", "family 👨‍👩‍👧.mp4", "שלום.mp4", "café.mp4"):
        assert printable(good) == valid_unicode(good) == good
    assert normalize_unicode("cafe\u0301") == normalize_unicode("caf\u00e9")


@pytest.mark.parametrize(
    ("count", "words"), [(0, "none"), (1, "a"), (6, "a, b, c, d, e, f"), (7, "a, b, c, d, e, f and 1 more")]
)
def test_many_names_are_shortened_and_counted(count, words):
    assert shorten("abcdefgh"[:count]) == words
