"""Captions as people really have them: tables of other programs, names written otherwise, tables that disagree."""

import json

import pyarrow as pa
import pytest
from caption_folders import AB, ROWS, arrow, captions, folder_of, parquet, read

from odvae.running.errors import InputError
from odvae.tables.columns import Columns

FOUND = {"a.mp4": ["a dog"], "b.mp4": ["a cat"]}
RECORDS = [{"path": "a.mp4", "text": "a dog"}, {"path": "b.mp4", "text": "a cat"}]
TABLES = {
    "Excel's separator line": {"t.csv": "sep=;\r\npath;text\r\na.mp4;a dog\r\nb.mp4;a cat\r\n"},
    "Excel's separator line, quoted": {"t.csv": '"sep=,"\r\n' + ROWS},
    "columns in camel case": {"t.csv": ROWS.replace("path,text", "videoPath,shortCaption")},
    "Hugging Face's *_file_name": {"metadata.csv": ROWS.replace("path", "video_file_name")},
    "a negative prompt beside": {
        "t.csv": "path,negative_prompt,has_caption,prompt\na.mp4,x,1,a dog\nb.mp4,x,1,a cat\n"
    },
    "an object in a cell": {"t.csv": 'path,text\na.mp4,"{""caption"": ""a dog""}"\nb.mp4,"[{\'text\': \'a cat\'}]"\n'},
    "control characters": {"t.csv": "path,text\na.mp4,a\x00 dog\nb.mp4,\x07a cat\n"},
    "json by splits": {"t.json": {"train": {"a.mp4": "a dog"}, "val": {"b.mp4": "a cat"}}},
    "json, lists by splits": {"t.json": {"train": RECORDS[:1], "val": RECORDS[1:]}},
    "json within json": {"t.json": {"version": "1.0", "data": {"items": RECORDS}}},
    "json by clips": {"t.json": {"clips": {"x": RECORDS[0], "y": RECORDS[1]}}},
    "json by clips and splits": {"t.json": {"val": {"a.mp4": {"cap": "a dog"}, "b.mp4": {"cap": "a cat"}}}},
    "json of objects in objects": {
        "t.json": {"a.mp4": {"caption": {"text": "a dog"}, "meta": {"label": "x"}}, "b": {"about": {"cap": "a cat"}}}
    },
    "json of pandas by index": {"t.json": {"0": RECORDS[0], "1": RECORDS[1]}},
    "a path in an object": {
        "t.jsonl": "\n".join(json.dumps({"meta": {"path": r["path"]}, "cap": r["text"]}) for r in RECORDS)
    },
    "a caption in an object": {"t.json": [{"path": r["path"], "about": {"caption": r["text"]}} for r in RECORDS]},
    "captions as objects": {
        "t.json": [{"path": r["path"], "caption": {"shot": "x", "content": r["text"]}} for r in RECORDS]
    },
    "large strings and dictionaries": {
        "t.parquet": parquet(
            {
                "path": pa.array(["a.mp4", "b.mp4"], pa.large_string()),
                "text": pa.array(["a dog", "a cat"]).dictionary_encode(),
            }
        )
    },
    "texts stored as bytes": {"t.parquet": parquet({"path": [b"a.mp4", b"b.mp4"], "text": [b"a dog", b"a cat"]})},
    "an Arrow file with texts as bytes": {
        "t.arrow": arrow({"path": [b"a.mp4", b"b.mp4"], "text": [b"a dog", b"a cat"]})
    },
    "an Arrow stream": {
        "data-00000-of-00001.arrow": arrow({"path": ["a.mp4", "b.mp4"], "text": ["a dog", "a cat"]}, True)
    },
    "structures": {
        "t.parquet": parquet(
            {"video": [{"path": "a.mp4"}, {"path": "b.mp4"}], "cap": [{"text": "a dog"}, {"text": "a cat"}]}
        )
    },
    "dates of any unit": {
        "t.parquet": parquet(
            {
                "path": ["a.mp4", "b.mp4"],
                "text": ["a dog", "a cat"],
                "timestamp": pa.array([1, 2**60 + 1], pa.timestamp("ns")),
            }
        )
    },
    "names with dots in parquet": {
        "t.parquet": parquet({"x.y": [1, 2], "video.path": ["a.mp4", "b.mp4"], "text": ["a dog", "a cat"]})
    },
    "parquet in shards": {
        "data/train-00000-of-00002.parquet": parquet({"file_name": ["a.mp4"], "text": ["a dog"]}),
        "data/train-00001-of-00002.parquet": parquet({"file_name": ["b.mp4"], "text": ["a cat"]}),
    },
    "zst": {"t.csv.zst": pa.compress(ROWS.encode(), codec="zstd", asbytes=True)},
    "URLs": {"t.csv": "url,text\nhttps://x.org/v/a.mp4?dl=1,a dog\ns3://bucket/b.mp4,a cat\n"},
    "paths copied with marks": {"t.csv": "path,text\n\u202aC:\\v\\a.mp4,a dog\n\ufeffb.mp4\u200b,a cat\n"},
    "another extension": {"t.csv": "path,text\na.avi,a dog\nb.mkv,a cat\n"},
    "a folder of texts above": {"captions/a.txt": "a dog", "captions/b.txt": "a cat"},
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_other_programs_give_their_captions(tmp_path, table):
    assert captions(folder_of(tmp_path, AB | TABLES[table])) == FOUND


@pytest.mark.parametrize(
    "cell",
    [
        "['a dog' 'a pup']",
        "['a dog'\n 'a pup']",
        "array(['a dog', 'a pup'], dtype=object)",
        "array(['a dog' 'a pup'])",
        "('a dog', 'a pup')",
        "[{'caption': 'a dog'}, {'caption': 'a pup'}]",
        "['a dog', None, 'a pup']",
    ],
)
def test_lists_written_by_python_and_numpy_are_lists(tmp_path, cell):
    quoted = cell.replace('"', '""')
    assert captions(folder_of(tmp_path, {"a.mp4": b"", "t.csv": f'path,text\na.mp4,"{quoted}"\n'})) == {
        "a.mp4": ["a dog", "a pup"]
    }


def test_quotes_within_a_numpy_list_are_kept(tmp_path):
    cell = """[""it's a dog"" 'say \\'hi\\'']"""
    assert captions(folder_of(tmp_path, {"a.mp4": b"", "t.csv": f'path,text\na.mp4,"{cell}"\n'})) == {
        "a.mp4": ["it's a dog", "say 'hi'"]
    }


@pytest.mark.parametrize("text", ["{a: dog}", "(applause)", "(1, 2)", "{'shot': 'near'}", "['a' 'b' ... 'c']"])
def test_other_texts_in_brackets_are_texts(tmp_path, text):
    assert captions(folder_of(tmp_path, {"a.mp4": b"", "t.csv": f'path,text\na.mp4,"{text}"\n'})) == {"a.mp4": [text]}


@pytest.mark.parametrize("empty", ["NA", "N/A", "#N/A", "n/a", "none", "<NA>"])
def test_the_words_that_programs_write_for_nothing_are_no_caption(tmp_path, empty):
    assert captions(folder_of(tmp_path, {"a.mp4": b"", "t.csv": f"path,text\na.mp4,{empty}\n"})) == {"a.mp4": []}


def test_true_and_false_are_no_captions(tmp_path):
    folder_of(tmp_path, {"a.mp4": b"", "t.json": [{"path": "a.mp4", "caption": True, "title": "a dog"}]})
    assert captions(tmp_path) == {"a.mp4": ["a dog"]}


def test_cocos_captions_refer_to_files_by_number(tmp_path):
    coco = {
        "images": [{"id": 1, "file_name": "a.mp4"}, {"id": 2, "file_name": "b.mp4"}],
        "annotations": [
            {"id": 2, "image_id": 1, "caption": "a dog"},
            {"id": 7, "image_id": 1, "caption": "a pup"},
            {"id": 1, "image_id": 2, "caption": "a cat"},
            {"id": 3, "image_id": 9, "caption": "of a file that is not listed"},
        ],
    }
    reader = read(folder_of(tmp_path, AB | {"1.mp4": b"", "captions.json": coco}))
    assert {file: reader.find(file).captions for file in reader.source.media} == {
        "1.mp4": (),
        "a.mp4": ("a dog", "a pup"),
        "b.mp4": ("a cat",),
    }
    assert reader.tables[0].rows_without_file.count == 1


def test_kinetics_json_gives_parts_their_classes(tmp_path):
    kinetics = {"x": {"annotations": {"label": "running", "segment": [1, 4]}, "subset": "train", "url": "https://y"}}
    reader = read(folder_of(tmp_path, {"x_000001_000004.mp4": b"", "train.json": kinetics}))
    assert reader.find("x_000001_000004.mp4").label == "running"


def test_numbers_match_without_their_zeros_where_nothing_is_called_exactly_so(tmp_path):
    files = {"000042.mp4": b"", "7.mp4": b"", "07.mp4": b""}
    table = parquet({"video_id": [42, 7], "text": ["a dog", "a cat"]})
    assert captions(folder_of(tmp_path, files | {"t.parquet": table})) == {
        "000042.mp4": ["a dog"],
        "07.mp4": [],
        "7.mp4": ["a cat"],
    }
    (tmp_path / "t.parquet").unlink()
    assert captions(folder_of(tmp_path, {"t.csv": "id,text\n42.0,a dog\n7.0,a cat\n"}))["000042.mp4"] == ["a dog"]


def test_names_written_as_in_urls_match_where_nothing_is_called_exactly_so(tmp_path):
    files = {"my video.mp4": b"", "100%25.mp4": b"", "100%.mp4": b""}
    rows = "path,text\nfile:///d/my%20video.mp4,a dog\n100%25.mp4,a cat\n"
    assert captions(folder_of(tmp_path, files | {"t.csv": rows})) == {
        "my video.mp4": ["a dog"],
        "100%25.mp4": ["a cat"],
        "100%.mp4": [],
    }


def test_rows_of_two_extensions_are_not_both_of_a_third(tmp_path):
    folder_of(tmp_path, {"a.webm": b"", "t.csv": "path,text\na.mp4,one\na.mov,two\n"})
    with pytest.raises(InputError, match=r"several rows for this video: a\.mp4, a\.mov"):
        read(tmp_path).find("a.webm")


def test_a_name_that_files_in_several_folders_have_is_said(tmp_path):
    reader = read(folder_of(tmp_path, {"x/a.mp4": b"", "y/a.mp4": b"", "t.csv": "path,text\na.mp4,a dog\n"}))
    assert reader.find("x/a.mp4").caption == reader.find("y/a.mp4").caption == "a dog"
    assert "so each got the caption: x/a.mp4, y/a.mp4" in reader.notes[0]
    (tmp_path / "t.csv").write_text("path,text\nx/a.mp4,a dog\na.mp4,another\n")
    reader = read(tmp_path)
    assert [reader.find(file).caption for file in reader.source.media] == ["a dog", "another"]
    assert reader.notes == []


def test_a_key_twice_in_an_object_is_an_error(tmp_path):
    folder_of(tmp_path, AB | {"captions.json": b'{"a.mp4": "one", "b.mp4": "two", "a.mp4": "three"}'})
    with pytest.raises(InputError, match=r"captions\.json is not valid JSON: duplicate key 'a\.mp4'"):
        read(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        {"t.parquet": parquet({"path": ["a.mp4"], "Text": ["x"], "text": ["y"]})},
        {"t.csv": "path,Text,text\na.mp4,x,y\n"},
    ],
)
def test_a_column_twice_is_an_error(tmp_path, table):
    with pytest.raises(InputError, match=r"t\.\w+.*: duplicate column: text"):
        read(folder_of(tmp_path, AB | table))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.json", "captions.json"])
def test_an_empty_table_is_named_and_is_no_error(tmp_path, name):
    reader = read(folder_of(tmp_path, AB | {name: "\n"}))
    assert list(reader.left_over()) == [(name, "a table without a row for these files", "has no rows")]


def test_bytes_that_are_not_utf_8_cost_their_video_alone(tmp_path):
    reader = read(
        folder_of(tmp_path, AB | {"t.arrow": arrow({"path": ["a.mp4", "b.mp4"], "text": [b"\xe9", b"a cat"]})})
    )
    assert reader.find("b.mp4").caption == "a cat"
    with pytest.raises(InputError, match=r"its row in t\.arrow, row 1, is not UTF-8"):
        reader.find("a.mp4")


def test_captions_of_a_table_that_comes_later_are_counted_where_they_differ(tmp_path):
    tables = {"metadata.csv": ROWS, "captions.csv": "path,text\na.mp4,other\nb.mp4,a cat\nc.mp4,a bird\n"}
    reader = read(folder_of(tmp_path, AB | {"c.mp4": b""} | tables))
    assert {file: reader.find(file).caption for file in reader.source.media} == {
        "a.mp4": "a dog",
        "b.mp4": "a cat",
        "c.mp4": "a bird",
    }
    by_name = {table["name"]: table["captions_not_used"] for table in reader.describe_tables()}
    assert by_name == {
        "metadata.csv": {"count": 0, "names": {}},
        "captions.csv": {"count": 1, "names": {"a.mp4": "other"}},
    }
    assert "captions.csv: videos with another caption in this table" in reader.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,text\nz.mp4,x\n", r"has 1 row, none of a file here \(line 2: z\.mp4; here is a\.mp4\)"),
        ("path,text\n", "has no rows"),
    ],
)
def test_a_named_table_that_matches_nothing_is_an_error(tmp_path, content, message):
    folder_of(tmp_path, {"v/a.mp4": b"", "t.csv": content})
    with pytest.raises(InputError, match=rf"t\.csv {message}"):
        read(tmp_path / "v", named=tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(text="texts"), r"the column 'texts' \(text_column\).*\n  t\.csv: .*found path, text"),
        (Columns(file="paths"), r"the column 'paths' \(file_column\).*\n  t\.csv: .*found path, text"),
    ],
)
def test_a_column_that_no_table_has_is_an_error(tmp_path, columns, message):
    folder_of(tmp_path, AB | {"t.csv": ROWS})
    with pytest.raises(InputError, match=message):
        read(tmp_path, columns=columns)
    with pytest.raises(InputError, match=message.partition(".*")[0]):
        read(tmp_path, named=tmp_path / "t.csv", columns=columns)


@pytest.mark.parametrize("place", ["captions/x/a.txt", "x/captions/a.txt", "labels/a.txt", "texts/videos/x/a.txt"])
def test_texts_in_a_folder_of_their_own_are_found(tmp_path, place):
    video = {"labels/a.txt": "x/a.mp4", "texts/videos/x/a.txt": "videos/x/a.mp4"}.get(place, "x/a.mp4")
    assert captions(folder_of(tmp_path, {video: b"", place: "a dog"})) == {video: ["a dog"]}


def test_texts_of_other_folders_are_not_mixed_up(tmp_path):
    folder_of(tmp_path, {"x/a.mp4": b"", "y/a.mp4": b"", "captions/x/a.txt": "in x"})
    assert captions(tmp_path) == {"x/a.mp4": ["in x"], "y/a.mp4": []}
