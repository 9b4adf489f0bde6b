"""Captions and classes in every form in which data sets come: docs/data.md's table, one layout a test."""

import json

import pytest
from caption_folders import TWO, captions, feather, folder_of, parquet, read

from odvae.running.errors import InputError
from odvae.shards.captions import captions_in
from odvae.shards.tars import index_shard, shard_writer

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


def test_cells_longer_than_the_csv_module_allows_are_read(tmp_path):
    texts = [f"caption number {i}" for i in range(20_000)]
    folder_of(tmp_path, {"v_0.mp4": b"", "v_19999.mp4": b"", "long.csv": f'videoID,caption\nv,"{texts}"\n'})
    assert captions(tmp_path) == {"v_0.mp4": ["caption number 0"], "v_19999.mp4": ["caption number 19999"]}


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


def test_only_the_end_of_a_line_ends_a_row(tmp_path):
    """JSON may hold other characters that Python takes for the end of a line."""
    rows = [{"file_name": "a.mp4", "text": "one\u2028two\x85three"}, {"file_name": "b.mp4", "text": "b"}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert captions(folder_of(tmp_path, TWO | {"metadata.jsonl": lines})) == {
        "a.mp4": ["one two three"],
        "deep/b.mp4": ["b"],
    }


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
