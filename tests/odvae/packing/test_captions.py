"""Captions and classes in every form in which data sets come: docs/data.md's table, one layout a test."""

import json
import os
import unicodedata

import pytest
from caption_folders import captions, feather, folder_of, parquet, read

from odvae.packing.texts_beside import read_text_beside
from odvae.running.errors import InputError
from odvae.shards.captions import captions_in
from odvae.shards.tars import index_shard, shard_writer
from odvae.tables.columns import Columns

TWO = {"a.mp4": b"", "deep/b.mp4": b""}
EXPECTED = {"a.mp4": ["a dog"], "deep/b.mp4": ["a cat, asleep"]}


LAYOUTS = {
    "text beside": {"a.txt": "a dog\n", "deep/b.txt": "a cat,\nasleep"},
    "text beside, loud": {"a.TXT": "a dog\n", "deep/b.Txt": "a cat, asleep"},
    "text beside, with the video's whole name": {"a.mp4.txt": "a dog", "deep/b.mp4.txt": "a cat, asleep"},
    "caption beside": {"a.caption": "a dog", "deep/b.caption": "a cat, asleep"},
    "json beside": {"a.json": {"caption": "a dog", "fps": 8}, "deep/b.json": {"Prompt": "a cat, asleep"}},
    "a folder of texts": {"captions/a.txt": "a dog", "deep/captions/b.txt": "a cat, asleep"},
    "metadata.csv": {"metadata.csv": 'file_name,text\na.mp4,a dog\ndeep/b.mp4,"a cat, asleep"\n'},
    "metadata.csv with a mark": {"metadata.csv": '\ufefffile_name,text\na.mp4,a dog\ndeep/b.mp4,"a cat, asleep"\n'},
    "metadata.jsonl": {
        "metadata.jsonl": '{"file_name": "a.mp4", "text": "a dog"}\n\n'
        '{"file_name": "deep/b.mp4", "text": "a cat, asleep"}'
    },
    "metadata.parquet": {
        "metadata.parquet": parquet({"file_name": ["a.mp4", "deep/b.mp4"], "text": ["a dog", "a cat, asleep"]})
    },
    "parquet with videos as structures": {
        "data/train-00000-of-00001.parquet": parquet(
            {
                "video": [{"bytes": b"\0" * 100, "path": "a.mp4"}, {"bytes": None, "path": "deep/b.mp4"}],
                "caption": ["a dog", "a cat, asleep"],
            }
        )
    },
    "feather": {"table.feather": feather({"path": ["a.mp4", "deep/b.mp4"], "cap": ["a dog", "a cat, asleep"]})},
    "tables in sub-folders": {
        "metadata.csv": "file_name,text\na.mp4,a dog\n",
        "deep/metadata.csv": 'file_name,text\nb.mp4,"a cat, asleep"\n',
    },
    "metadata.json, a list": {
        "metadata.json": [{"file_path": "a.mp4", "text": "a dog"}, {"file_path": "deep/b.mp4", "text": "a cat, asleep"}]
    },
    "json, a key a video": {"prompts.json": {"a.mp4": "a dog", "deep/b.mp4": "a cat, asleep"}},
    "json, an object a video": {
        "meta_cap.json": {"/old/a.mp4": {"caption": "a dog"}, "/old/deep/b.mp4": {"caption": "a cat, asleep"}}
    },
    "json, a list within": {
        "data.json": {
            "version": 1,
            "data": [
                {"media_path": "a.mp4", "caption": "a dog"},
                {"media_path": "deep/b.mp4", "caption": "a cat, asleep"},
            ],
        }
    },
    "json, columns": {"t.json": {"path": ["a.mp4", "deep/b.mp4"], "cap": ["a dog", "a cat, asleep"]}},
    "json, columns of pandas": {
        "t.json": {"path": {"0": "a.mp4", "1": "deep/b.mp4"}, "cap": {"0": "a dog", "1": "a cat, asleep"}}
    },
    "json lines called json": {
        "t.json": '{"vid": "a", "caption": "a dog"}\n{"vid": "b", "caption": "a cat, asleep"}\n'
    },
    "Open-Sora": {"captions.csv": 'path,text,fps\n/data/a.mp4,a dog,30\n/data/deep/b.mp4,"a cat, asleep",30\n'},
    "Open-Sora-Plan": {
        "anno.json": [
            {"path": "./a.mp4", "cap": ["a dog"], "fps": 30},
            {"path": "./deep/b.mp4", "cap": ["a cat, asleep"]},
        ]
    },
    "OpenVid-1M": {
        "OpenVid-1M.csv": "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,"
        'fps,seconds\na.mp4,a dog,5.1,1.2,0.9,static,90,30,3.0\nb.mp4,"a cat, asleep",5.1,1.2,0.9,pan,90,30,3.0\n'
    },
    "Koala-36M": {
        "Koala_36M_1.csv": "videoID,url,timestamp,caption,clarity_score,aesthetic_score,motion_score,VTSS\n"
        "a,https://x,\"['0:00:24.641', '0:00:30.012']\",a dog,0.9,5.0,3.0,3.5\n"
        "b,https://x,\"['0:00:01.000', '0:00:02.012']\",\"a cat, asleep\",0.9,5.0,3.0,3.5\n"
    },
    "WebVid": {
        "results_2M_train.csv": "videoid,contentUrl,duration,page_dir,name\na,https://x,PT0H0M14S,elsewhere,a dog\n"
        'b,https://x,PT0H0M14S,deep,"a cat, asleep"\n'
    },
    "finetrainers' pair": {"videos.txt": "a.mp4\r\ndeep/b.mp4\r\n", "prompts.txt": "a dog\r\na cat, asleep\r\n"},
    "finetrainers' pair, other names": {"video.txt": "a.mp4\ndeep/b.mp4", "captions.txt": "a dog\na cat, asleep"},
    "tabs": {"meta.tsv": "Video Path\tCaption\na.mp4\ta dog\ndeep/b.mp4\ta cat, asleep\n"},
    "semicolons": {"meta.csv": " FILE_NAME ; Text\na.mp4;a dog\ndeep/b.mp4;a cat, asleep\n"},
    "bars": {"meta.csv": "file|caption\na.mp4|a dog\ndeep/b.mp4|a cat, asleep\n"},
    "spaces after commas": {"meta.csv": 'file, caption\na.mp4, a dog\ndeep/b.mp4, "a cat, asleep"\n'},
    "old line ends": {"meta.csv": 'file,caption\ra.mp4,a dog\rdeep/b.mp4,"a cat, asleep"\r'},
    "an index column": {"meta.csv": ',file,caption\n0,a.mp4,a dog\n1,deep/b.mp4,"a cat, asleep"\n'},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_captions(tmp_path, layout):
    assert captions(folder_of(tmp_path, TWO | LAYOUTS[layout])) == EXPECTED


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_packed_tables_are_read_as_they_are(tmp_path, ending):
    import bz2
    import gzip
    import lzma

    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[ending]
    rows = b'{"path": "a.mp4", "cap": "a dog"}\n{"path": "b.mp4", "cap": "a cat, asleep"}\n'
    folder_of(tmp_path, TWO | {f"captions.jsonl.{ending}": pack(rows)})
    assert captions(tmp_path) == EXPECTED
    (tmp_path / f"captions.jsonl.{ending}").write_bytes(pack(rows * 1000)[:60])
    with pytest.raises(InputError, match=rf"captions\.jsonl\.{ending} cannot be read"):
        read(tmp_path, named=tmp_path / f"captions.jsonl.{ending}")


def test_a_panda_70m_row_gives_each_part_of_a_video_its_own_caption(tmp_path):
    rows = (
        "videoID,url,timestamp,caption,matching_score\n"
        "qL_qj,https://x,\"[['0:00:02.002', '0:00:07.007'], ['0:00:08.000', '0:00:12.500']]\","
        '"[\'a dog, running\', ""a man\'s cat""]","[0.5, 0.4]"\n'
    )
    names = ("qL_qj_0", "qL_qj_segment_1", "x/qL_qj-00001", "qL_qj/0", "qL_qj_0:00:08.000_0:00:12.500", "qL_qj_2", "qL")
    folder_of(tmp_path, {f"{name}.mp4": b"" for name in names} | {"panda70m_training_2m.csv": rows})
    dog, cat = ["a dog, running"], ["a man's cat"]
    assert (
        captions(tmp_path)
        == {f"{name}.mp4": found for name, found in zip(names, (dog, cat, cat, dog, cat, [], []), strict=True)} | {}
    )


def test_a_whole_video_has_the_captions_of_all_its_parts_and_that_is_said(tmp_path):
    row = "videoID,timestamp,caption\nvid,\"[['0:00:02', '0:00:07'], ['0:00:08', '0:00:12']]\",\"['one', 'two']\"\n"
    reader = read(folder_of(tmp_path, {"vid.mp4": b"", "panda.csv": row}))
    assert reader.find("vid.mp4").captions == ("one", "two")
    assert "uncut videos whose captions describe parts of them: 1 (vid.mp4)" in reader.notes[0]


def test_cells_longer_than_the_csv_module_allows_are_read(tmp_path):
    texts = [f"caption number {i}" for i in range(20_000)]
    folder_of(tmp_path, {"v_0.mp4": b"", "v_19999.mp4": b"", "long.csv": f'videoID,caption\nv,"{texts}"\n'})
    assert captions(tmp_path) == {"v_0.mp4": ["caption number 0"], "v_19999.mp4": ["caption number 19999"]}


def test_a_list_of_captions_of_a_whole_video_is_not_of_files_that_are_called_like_parts_of_it(tmp_path):
    folder_of(tmp_path, {"v.mp4": b"", "v_0.mp4": b"", "t.csv": "videoID,caption\nv,\"['one', 'two']\"\n"})
    assert captions(tmp_path) == {"v.mp4": ["one", "two"], "v_0.mp4": []}


def test_parts_that_are_counted_from_one_are_told_from_those_counted_from_zero(tmp_path):
    folder_of(tmp_path, {"v_1.mp4": b"", "v_2.mp4": b"", "t.csv": "videoID,caption\nv,\"['one', 'two']\"\n"})
    assert captions(tmp_path) == {"v_1.mp4": ["one"], "v_2.mp4": ["two"]}


def test_clips_named_by_their_times_are_found(tmp_path):
    """Kinetics and InternVid: many rows of one video, each of some seconds of it."""
    rows = "label,youtube_id,time_start,time_end,split\narchery,a_b,10,20,train\nbowling,a_b,31,41,train\n"
    folder_of(tmp_path, {"a_b_000010_000020.mp4": b"", "x/a_b_000031_000041.mp4": b"", "kinetics.csv": rows})
    reader = read(tmp_path)
    assert [reader.find(file).label for file in reader.source.media] == ["archery", "bowling"]


@pytest.mark.parametrize(
    "table",
    [
        {"t.json": [{"path": "a.mp4", "cap": ["one", "two", "one", ""]}]},
        {"t.csv": "path,cap\na.mp4,one\na.mp4,two\na.mp4,one\n"},
        {"t.csv": "path,caption_1,caption_2,caption_10\na.mp4,one,two,\n"},
        {"t.csv": "path,captions\na.mp4,\"['one', 'two']\"\n"},
        {"t.csv": 'path,captions\na.mp4,"[""one"", ""two""]"\n'},
        {
            "t.json": {
                "videos": [{"video_id": "a", "url": "x"}],
                "sentences": [{"video_id": "a", "caption": "one"}, {"video_id": "a", "caption": "two"}],
            }
        },
        {"t.json": [{"videoID": "a", "enCap": ["one", "two"], "chCap": ["三"]}]},
        {"t.json": {"a": {"sentences": ["one", "two"], "timestamps": [[0, 1], [1, 2]]}}},
        {"t.parquet": parquet({"path": ["a.mp4"], "captions": [["one", "two"]]})},
        {"a.json": {"captions": ["one", "two"]}},
        {"a.json": ["one", "two"]},
    ],
)
def test_several_captions_of_a_video_are_all_kept_each_once(tmp_path, table):
    assert captions(folder_of(tmp_path, {"a.mp4": b"", **table})) == {"a.mp4": ["one", "two"]}


def test_a_text_in_brackets_is_no_list(tmp_path):
    folder_of(tmp_path, {"a.mp4": b"", "b.mp4": b"", "t.csv": "path,text\na.mp4,[music] plays [loud]\nb.mp4,[1]\n"})
    assert captions(tmp_path) == {"a.mp4": ["[music] plays [loud]"], "b.mp4": ["[1]"]}


@pytest.mark.parametrize("empty", ["", "  ", "nan", "NaN", "None", "null"])
def test_an_empty_caption_is_the_video_s_alone(tmp_path, empty):
    folder_of(tmp_path, TWO | {"metadata.csv": f"file_name,text\na.mp4,{empty}\nb.mp4,kept\n\n,\n"})
    reader = read(tmp_path)
    assert [reader.find(file).captions for file in reader.source.media] == [(), ("kept",)]
    assert reader.notes == ["metadata.csv: rows without a caption: 1 (line 2)"]


@pytest.mark.parametrize(
    "table",
    [
        {"metadata.jsonl": '{"file_name": "a.mp4", "text": null}\n{"file_name": "b.mp4", "text": "kept"}'},
        {"metadata.jsonl": '{"file_name": "a.mp4", "text": NaN}\n{"file_name": "b.mp4", "text": "kept"}'},
        {"metadata.jsonl": '{"file_name": "a.mp4"}\n{"file_name": "b.mp4", "text": "kept"}'},
        {"metadata.csv": "file_name,text\na.mp4\nb.mp4,kept\n"},
        {"t.parquet": parquet({"path": ["a.mp4", "b.mp4"], "text": [None, "kept"]})},
        {"t.parquet": parquet({"path": ["a.mp4", "b.mp4"], "text": [None, "kept"], "label": [float("nan"), 3.0]})},
    ],
)
def test_nothing_in_a_caption_s_cell_and_a_short_row_cost_one_caption(tmp_path, table):
    assert captions(folder_of(tmp_path, TWO | table)) == {"a.mp4": [], "deep/b.mp4": ["kept"]}


def test_where_a_caption_is_null_the_next_place_is_looked_at(tmp_path):
    folder_of(tmp_path, {"a.mp4": b"", "a.txt": "from the text", "metadata.csv": "file_name,text\na.mp4,\n"})
    assert captions(tmp_path) == {"a.mp4": ["from the text"]}


def test_names_match_in_any_unicode_form_with_backslashes_and_without_extension(tmp_path):
    decomposed = unicodedata.normalize("NFD", "café.mp4")
    files = {decomposed: b"", "deep/b.mp4": b"", "C.MP4": b"", "42.mp4": b""}
    composed = unicodedata.normalize("NFC", decomposed)
    rows = f"path,text\n{composed},coffee\nD:\\data\\deep\\b.mp4,deep\nc.mp4,loud\n42,number\n"
    found = captions(folder_of(tmp_path, files | {"t.csv": rows}))
    assert found == {decomposed: ["coffee"], "deep/b.mp4": ["deep"], "C.MP4": ["loud"], "42.mp4": ["number"]}
    (tmp_path / "t.csv").unlink()
    folder_of(tmp_path, {unicodedata.normalize("NFC", "café.txt"): "beside"})
    assert captions(tmp_path)[decomposed] == ["beside"]


def test_a_row_of_one_video_is_never_lent_to_another_of_the_same_name(tmp_path):
    folder_of(tmp_path, {"a.mp4": b"", "elsewhere/a.mp4": b"", "t.csv": "path,text\na.mp4,mine\n"})
    assert captions(tmp_path) == {"a.mp4": ["mine"], "elsewhere/a.mp4": []}


def test_rows_of_which_several_could_be_meant_are_an_error_of_that_video(tmp_path):
    rows = '{"file_name": "x/b.mp4", "text": "1"}\n{"file_name": "y/b.mp4", "text": "2"}\n'
    folder_of(tmp_path, {"b.mp4": b"", "metadata.jsonl": rows})
    with pytest.raises(InputError, match=r"several rows for this video: x/b\.mp4, y/b\.mp4"):
        read(tmp_path).find("b.mp4")


def test_a_name_that_is_no_utf_8_has_its_row_and_text(tmp_path):
    name, other = os.fsdecode(b"caf\xe9.mp4"), os.fsdecode(b"\xff.mp4")
    folder_of(
        tmp_path,
        {name: b"", other: b"", os.fsdecode(b"\xff.txt"): "beside", "t.csv": b"path,text\ncaf\xe9.mp4,coffee\n"},
    )
    assert captions(tmp_path) == {name: ["coffee"], other: ["beside"]}


def test_only_the_end_of_a_line_ends_a_row(tmp_path):
    """JSON may hold other characters that Python takes for the end of a line."""
    rows = [{"file_name": "a.mp4", "text": "one\u2028two\x85three"}, {"file_name": "b.mp4", "text": "b"}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert captions(folder_of(tmp_path, TWO | {"metadata.jsonl": lines})) == {
        "a.mp4": ["one two three"],
        "deep/b.mp4": ["b"],
    }


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


def test_the_nearest_table_comes_first_then_the_usual_names(tmp_path):
    files = {"deep/x.mp4": b"", "y.mp4": b"", "z.mp4": b""}
    folder_of(
        tmp_path,
        files
        | {"deep/zz.csv": "path,text\nx.mp4,near\n", "metadata.csv": "path,text\ndeep/x.mp4,far\ny.mp4,usual\n"}
        | {"a.csv": "path,text\ny.mp4,unusual\nz.mp4,only here\n", "other/m.csv": "path,text\nz.mp4,away\n"},
    )
    assert captions(tmp_path) == {"deep/x.mp4": ["near"], "y.mp4": ["usual"], "z.mp4": ["only here"]}


def test_a_named_table_is_read_alone(tmp_path):
    folder_of(tmp_path, TWO | {"metadata.csv": "path,text\na.mp4,wrong\n", "a.txt": "wrong", "notes.doc": "x"})
    folder_of(tmp_path, {"elsewhere/my table.csv": "Clip,What Is Said,caption\na.mp4,right,wrong\n"})
    reader = read(tmp_path, tmp_path / "elsewhere/my table.csv", Columns("clip", "what_is_said"))
    assert [reader.find(file).captions for file in reader.source.media] == [("right",), ()]
    left = {name: exactly for name, _, exactly in reader.left_over()}
    assert left.keys() == {"metadata.csv", "a.txt", "notes.doc"}
    assert "is not read, because captions=" in left["metadata.csv"]
    assert left["notes.doc"] == "is a .doc file, which is not supported"


def test_what_is_there_and_not_used_is_named(tmp_path):
    folder_of(
        tmp_path,
        {"a.mp4": b"", "a.txt": "a dog", "a.json": {"caption": "needless"}, "b.txt": "no video", "readme": "x"}
        | {"other.csv": "path,text\nz.mp4,1\n", "config.json": {"a": 1}, "scores.csv": "video,score\na.mp4,1\n"},
    )
    reader = read(tmp_path)
    assert reader.find("a.mp4").caption == "a dog"
    left = {name: (reason, exactly) for name, reason, exactly in reader.left_over()}
    assert left.keys() == {"a.json", "b.txt", "readme", "other.csv", "config.json", "scores.csv"}
    assert left["a.json"] == (
        "captions that are not used",
        "is not needed: its videos have captions from other files, or are left out",
    )
    assert left["b.txt"][0] == "a text without a video of the same name"
    assert left["other.csv"] == (
        "a table without a row for these files",
        "has 1 row, none of a file here (line 2: z.mp4; here is a.mp4)",
    )
    assert "needs a file column" in left["scores.csv"][1]
    assert left["readme"][1] == "is a file without extension, which is not supported"


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


def test_classes_come_with_captions_or_without(tmp_path):
    folder_of(
        tmp_path, TWO | {"t.csv": "path,label\na.mp4,pet\nb.mp4,3.0\n", "a.json": {"label": "not this", "text": "x"}}
    )
    reader = read(tmp_path)
    assert [(found.captions, found.label) for found in map(reader.find, reader.source.media)] == [
        (("x",), "pet"),
        ((), "3.0"),
    ]


def test_a_shard_s_captions_are_its_text_and_those_in_its_json(tmp_path):
    samples = {
        "a": {"txt": b"one", "json": json.dumps({"caption": "one", "captions": ["one", "two", 3, ""]}).encode()},
        "b": {"txt": b" one \n"},
        "c": {"json": json.dumps({"caption": "from the json"}).encode()},
        "d": {"json": json.dumps({"caption": None, "captions": "no list"}).encode()},
        "e": {"txt": b"", "json": b"{}"},
    }
    with shard_writer(tmp_path / "0.tar") as shard:
        for key, members in samples.items():
            shard.write({"__key__": key, **members})
    found = {sample.key: captions_in(sample) for sample in index_shard(tmp_path / "0.tar")}
    assert found == {"a": ("one", "two"), "b": ("one",), "c": ("from the json",), "d": (), "e": ()}
