"""Captions that cannot be read: wrong encodings, broken tables and texts, lists of other lengths; each is named."""

import pytest
from caption_folders import TWO, captions, folder_of, read

from odvae.packing.texts_beside import read_text_beside
from odvae.running.errors import InputError

LATIN = "un chien près".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", b"path,text\na.mp4," + LATIN + b"\nb.mp4,good\n"),
        ("captions.jsonl", b'{"path": "a.mp4", "text": "' + LATIN + b'"}\n{"path": "b.mp4", "text": "good"}'),
        ("captions.jsonl", b'{"path": "a.mp4", "text": "\\ud83d"}\n{"path": "b.mp4", "text": "good"}'),
    ],
)
def test_a_row_that_is_not_utf_8_costs_its_video_alone(tmp_path, name, content):
    reader = read(folder_of(tmp_path, TWO | {name: content}))
    assert reader.find("deep/b.mp4").caption == "good"
    with pytest.raises(InputError, match=r"its row in captions\..*, line \d, is not UTF-8"):
        reader.find("a.mp4")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LATIN, r"its caption a\.txt is not UTF-8"),
        ("un chien".encode("utf-16"), r"its caption a\.txt is UTF-16, not UTF-8"),
        ("un chien".encode("utf-16-le"), r"its caption a\.txt is UTF-16, not UTF-8"),
    ],
)
def test_a_text_that_is_not_utf_8_is_named(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_text_beside(tmp_path / "a.txt")


@pytest.mark.parametrize("content", [b"{nonsense", b"[" * 100_000, b'{"caption": "\\ud83d"}', b"\xff\xfe{\x00}\x00"])
def test_a_json_beside_a_video_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"its caption a\.json"):
        read_text_beside(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"", b"3", b"[1, 2]", b"null", b'{"fps": 8}', b'{"caption": {"zh": 1}}'])
def test_a_json_beside_a_video_may_be_of_something_else(tmp_path, content):
    folder_of(tmp_path, {"a.mp4": b"", "a.json": content})
    found = captions(tmp_path)["a.mp4"]
    assert found == ([] if content != b"[1, 2]" else ["1", "2"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "captions.json"])
def test_a_table_in_another_encoding_is_an_error_that_names_it(tmp_path, name, encoding):
    text = "file_name,text\na.mp4,x\n" if name.endswith("csv") else '[{"file_name": "a.mp4", "text": "x"}]'
    folder_of(tmp_path, TWO | {name: text.encode(encoding)})
    with pytest.raises(InputError, match=rf"{name} is UTF-"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"file_name": "a.mp4"}', r"t\.jsonl, line 1: needs a file column .* found file_name"),
        ("t.jsonl", "{nonsense", r"t\.jsonl, line 1 is not valid JSON"),
        ("t.jsonl", '{"file_name": "a.mp4", "text": "x"}\n[1]', r"t\.jsonl, line 2: expected an object, found list"),
        ("t.json", "[1, 2", r"t\.json is not valid JSON"),
        ("t.json", "3", r"t\.json: expected a list of objects, found int"),
        ("t.json", '["a", "b"]', r"t\.json, row 1: needs a file column .* found no columns"),
        ("t.json", "[" * 100_000, r"t\.json is not valid JSON"),
        ("t.parquet", "PAR1 cut short", r"t\.parquet cannot be read as a parquet table"),
        ("t.parquet", "", r"t\.parquet cannot be read as a parquet table"),
        ("t.xlsx", "", r"t\.xlsx: allowed are \.csv, \.tsv"),
    ],
)
def test_broken_tables_are_named(tmp_path, name, content, message):
    folder_of(tmp_path, {"a.mp4": b"", name: content})
    with pytest.raises(InputError, match=message):
        read(tmp_path, tmp_path / name)


@pytest.mark.parametrize(("path", "message"), [("gone.csv", "does not exist"), ("folder", "is a folder, not a file")])
def test_a_caption_table_that_is_no_file_is_named_with_what_it_is(tmp_path, path, message):
    folder_of(tmp_path, {"a.mp4": b"", "folder/x": ""})
    with pytest.raises(InputError, match=rf"^caption table .*{path} {message}"):
        read(tmp_path, tmp_path / path)


def test_lists_of_other_lengths_are_an_error(tmp_path):
    folder_of(tmp_path, TWO | {"videos.txt": "a.mp4\ndeep/b.mp4\n", "prompts.txt": "one\n"})
    with pytest.raises(InputError, match=r"videos\.txt has 2 lines and .*prompts\.txt has 1"):
        read(tmp_path)
    (tmp_path / "prompts.txt").write_text("\ntwo\n\n\n")
    assert captions(tmp_path) == {"a.mp4": [], "deep/b.mp4": ["two"]}
    assert list(read(tmp_path).left_over()) != []  # not asked yet: nothing is used
    reader = read(tmp_path)
    for file in reader.source.media:
        reader.find(file)
    assert list(reader.left_over()) == []
