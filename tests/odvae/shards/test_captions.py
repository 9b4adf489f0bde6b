"""Captions and classes in every form data sets come in."""

import json

import pytest

from odvae.running.errors import InputError
from odvae.shards.captions import CaptionTable, Description, caption_beside, find_table

ROWS = [("a.mp4", "a dog"), ("deep/b.mp4", "a, cat")]


def write_table(folder, form):
    if form == "metadata.jsonl":
        text = "\n".join(json.dumps({"file_name": file, "text": text, "label": "pet"}) for file, text in ROWS)
    elif form == "captions.csv":
        text = "path,text,fps\n" + "".join(f'/data/videos/{file},"{text}",30\n' for file, text in ROWS)
    else:
        text = json.dumps([{"path": f"./{file}", "cap": [text, "another"], "fps": 30} for file, text in ROWS])
    (folder / form).write_text(text, encoding="utf-8-sig")
    return CaptionTable(find_table(folder), folder)


@pytest.mark.parametrize("form", ["metadata.jsonl", "captions.csv", "captions.json"])
def test_the_field_s_tables_are_read_by_name_or_by_the_end_of_a_path(tmp_path, form):
    table = write_table(tmp_path, form)
    label = "pet" if form == "metadata.jsonl" else None
    assert table.find("a.mp4") == Description("a dog", label)
    assert table.find("deep/b.mp4") == Description("a, cat", label)
    assert table.find("c.mp4") == Description()
    assert table.unused == 0


def test_a_row_of_one_video_is_never_lent_to_another_of_the_same_name(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"a video")
    table = write_table(tmp_path, "metadata.jsonl")
    assert table.find("elsewhere/a.mp4") == Description()
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "x/b.mp4", "text": "1"}\n{"file_name": "y/b.mp4", "text": "2"}\n'
    )
    with pytest.raises(InputError, match=r"several rows for it: x/b\.mp4, y/b\.mp4"):
        CaptionTable(tmp_path / "metadata.jsonl", tmp_path).find("b.mp4")


def test_only_the_end_of_a_line_ends_a_row(tmp_path):
    """JSON may hold other characters that Python takes for the end of a line."""
    rows = [{"file_name": "a.mp4", "text": "one\u2028two\x85three"}, {"file_name": "b.mp4", "text": "b"}]
    (tmp_path / "metadata.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    table = CaptionTable(tmp_path / "metadata.jsonl", tmp_path)
    assert table.find("a.mp4").caption.split() == ["one", "two", "three"]
    assert table.find("b.mp4").caption == "b"


def test_a_caption_that_is_not_utf_8_costs_its_video_alone(tmp_path):
    latin = "un chien près".encode("latin-1")
    (tmp_path / "a.txt").write_bytes(latin)
    with pytest.raises(InputError, match=r"its caption a\.txt is not UTF-8"):
        caption_beside(tmp_path / "a.mp4")
    (tmp_path / "captions.csv").write_bytes(b"path,text\na.mp4," + latin + b"\nb.mp4,good\n")
    table = CaptionTable(tmp_path / "captions.csv", tmp_path)
    assert table.find("b.mp4").caption == "good"
    with pytest.raises(InputError, match=r"its row in captions\.csv is not UTF-8"):
        table.find("a.mp4")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", '{"file_name": "a.mp4"}', r"t\.jsonl, row 1: needs a file column"),
        ("t.jsonl", "{nonsense", r"t\.jsonl, line 1 is not valid JSON"),
        ("t.json", '{"path": "a.mp4"}', r"expected a list of objects"),
        ("t.parquet", "", r"allowed are \.jsonl, \.csv and \.json"),
    ],
)
def test_broken_tables_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        CaptionTable(tmp_path / name, tmp_path)
