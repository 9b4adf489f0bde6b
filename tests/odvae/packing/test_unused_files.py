"""Files that are of no use for a data set: each is named with its reason, and the documentation has every reason."""

import contextlib
import json
import re
from pathlib import Path

import pytest
from caption_folders import AB, ROWS, folder_of, read

from odvae.packing import captions as caption_reader
from odvae.packing.file_kinds import describe_kind
from odvae.running import account
from odvae.running.errors import InputError


@pytest.mark.parametrize(
    ("name", "content", "reason", "exactly"),
    [
        ("t.csv", b"a.mp4,a dog\nb.mp4,a cat\n", "a table without captions", "the first line must name the columns"),
        ("t.csv", "path,text\n".encode("utf-16"), "a table that cannot be read", "is UTF-16, not UTF-8"),
        ("t.json", b"{", "a table that cannot be read", "is not valid JSON"),
        ("a.txt", b" \n", "a text without a caption", "is empty"),
        ("a.json", b'{"fps": 8}', "a text without a caption", "holds no caption"),
        ("a.txt", b"\xe9", "caption cannot be read", "cannot be read: a.mp4 is left out"),
        ("prompts.txt", b"a dog\n", "a text without a video of the same name", "without a videos.txt in its folder"),
        ("t.xlsx", b"PK", "unsupported file type", "save the table as CSV in UTF-8"),
    ],
)
def test_each_file_of_no_use_has_its_reason(tmp_path, name, content, reason, exactly):
    reader = read(folder_of(tmp_path, AB | {name: content}))
    for file in reader.source.media:
        try:
            reader.find(file)
        except InputError:
            assert file == "a.mp4"
    ((found, why, words),) = reader.left_over()
    assert (found, why) == (name, reason)
    assert exactly in words


def test_a_text_whose_video_has_a_caption_in_a_table_says_in_which(tmp_path):
    reader = read(folder_of(tmp_path, AB | {"a.txt": "x", "t.csv": ROWS}))
    reader.find("a.mp4")
    assert next(iter(reader.left_over()))[2] == "is not needed: a.mp4 has a caption in t.csv"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.tar.gz", "is a .gz file, which is not supported: unpack it first"),
        ("x.HEIC", "is a .heic file, which is not supported: convert it to JPEG or PNG"),
        ("x.mp4.part", "is a .part file, which is not supported: its download is not finished"),
        ("LICENSE", "is a file without extension, which is not supported"),
        (".gitignore", "is a file without extension, which is not supported"),
        ("x.docx", "is a .docx file, which is not supported"),
    ],
)
def test_a_file_of_another_kind_is_named_with_what_can_be_done(name, words):
    assert describe_kind(name) == words


def documented():
    """The tables of docs/data.md: the JSON examples of layouts, and the reasons for which files are left out."""
    text = (Path(__file__).parents[3] / "docs/data.md").read_text()
    layouts = text.partition("| layout |")[2].partition("\n\n")[0]
    reasons = text.partition("| reason |")[2].partition("\n\n")[0]
    found = []
    for example in re.findall(r"`([\[{][^`]*[\]}])`", layouts):
        with contextlib.suppress(ValueError):  # those with dots for the rest
            value = json.loads(example)
            found += [] if isinstance(value, list) and isinstance(value[0], str) else [value]
    return found, re.findall(r"^\| ([^|]+) \|", reasons, re.MULTILINE)


@pytest.mark.parametrize("example", documented()[0], ids=lambda example: json.dumps(example)[:40])
def test_the_json_examples_in_the_documentation_are_read(tmp_path, example):
    """As a table, as a line of one, or as the file next to the video."""
    found = []
    for name in ("t.json", "t.jsonl", "a.json"):
        folder = folder_of(tmp_path / name, {"a.mp4": b"", "abc_000010_000020.mp4": b"", name: example})
        reader = read(folder)
        found += [reader.find(file) for file in reader.source.media]
    assert any("a dog runs" in one.captions or one.label == "archery" for one in found)


def test_every_reason_for_leaving_a_file_out_is_in_the_documentation():
    reasons = [account.UNREADABLE, account.COPY, account.BAD_CAPTION, account.NOT_A_FILE, caption_reader.BROKEN_TABLE]
    reasons += [caption_reader.NO_CAPTIONS, caption_reader.NO_ROW, caption_reader.EMPTY_TEXT, caption_reader.NOT_TAKEN]
    reasons += [caption_reader.NO_VIDEO_OF_ITS_NAME, caption_reader.NOT_NEEDED]
    assert set(reasons) <= set(documented()[1])
