"""Which row or text belongs to which video: names, parts of videos, and the order in which tables are read."""

import os
import unicodedata

import pytest
from caption_folders import TWO, captions, folder_of, read

from odvae.running.errors import InputError
from odvae.tables.columns import Columns


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
