"""A table of URLs or paths as the source: downloads that fail in every way, rows of all kinds, a run that goes on."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from file_server import FileServer
from PIL import Image
from scripts import Script, succeed

from odvae.packing import writing
from odvae.packing.fetching import DownloadError, FetchLimits, fetch
from odvae.packing.finishing import finish_parts
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.packing.state import PackingState
from odvae.running.errors import InputError
from odvae.shards.tars import index_shards, list_shards
from odvae.video.video_io import write_video

QUICK = {"download_seconds": 0.4, "download_retries": 2, "largest_mib": 0.5}
SETTINGS = PackingSettings(workers=0, downloads=4, samples_per_shard=2, **QUICK)
LIMITS = FetchLimits(seconds=0.4, retries=2, largest=1 << 19)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for i in range(8):
        write_video(folder / f"{i}.mp4", np.full((5, 16, 16, 3), 30 * i, np.uint8), 8)
    Image.new("RGB", (20, 10), (200, 0, 0)).save(folder / "red.png")
    (folder / "page.mp4").write_bytes(b"<!DOCTYPE html><html>not here</html>")
    return folder


@pytest.fixture
def server(files):
    with FileServer(files) as server:
        yield server


def table_of(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def packed(out):
    return {one.read_json()["source"]: one for one in index_shards(list_shards(out, "?"))}


def test_urls_are_packed_in_the_order_of_the_table_with_their_captions_classes_and_other_columns(server, tmp_path):
    lines = ["url,caption,label,views"]
    lines += [f'{server.url}/a/{i}.mp4?size=1,"clip, {i}",c{i % 2},{i}' for i in (3, 1, 2)]
    lines += [f"{server.url}/a/red.png,a red plate,,"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    report = pack_folder(tmp_path / "t.csv", tmp_path / "out", SETTINGS)
    assert (report.videos, report.images, report.rejected) == (3, 1, {})
    assert report.classes == {"c0": 1, "c1": 2}
    found = [one.read_json() for one in index_shards(list_shards(tmp_path / "out", "?"))]
    assert [about["source"][-12:] for about in found[:3]] == [f"/{i}.mp4?size=1"[-12:] for i in (3, 1, 2)]
    assert (found[0]["caption"], found[0]["row"], found[0]["label"]) == ("clip, 3", {"views": "3"}, "c1")
    by_source = packed(tmp_path / "out")
    assert by_source[f"{server.url}/a/1.mp4?size=1"].read("mp4") == (server.folder / "1.mp4").read_bytes()
    assert "png" in by_source[f"{server.url}/a/red.png"].members
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == [
        "00000.tar", "00001.tar", "README.md", "index.arrow", "packing.json", "png-00000.tar",
    ]  # fmt: skip


def test_each_download_that_fails_is_named_with_its_reason_and_nothing_of_it_is_kept(server, tmp_path):
    reasons = {
        "404/x.mp4": "the server's answer is 404 Not Found",
        "500/9/0.mp4": "the server's answer is 503 Service Unavailable, 3 times",
        "cut/1.mp4": "the connection ended after",
        "silent/x.mp4": "the server sent nothing for 0.4 s, 3 times",
        "huge/x.mp4": "it has at least 1048576 MiB, largest_mib is 0.5",
        "endless/x.mp4": "largest_mib is 0.5",
    }
    rows = [{"url": f"{server.url}/{path}", "caption": path} for path in reasons]
    rows += [{"url": f"{server.url}/500/2/2.mp4", "caption": "works at last"}]
    rows += [{"url": f"{server.url}/cut-once/3.mp4", "caption": "works again"}]
    rows += [{"url": "http://127.0.0.1:9/x.mp4"}, {"url": "ftp://127.0.0.1/x.mp4"}, {"url": "http://[bad/x.mp4"}]
    rows += [{"url": f"{server.url}/a/page.mp4"}]
    report = pack_folder(table_of(tmp_path / "t.jsonl", rows), tmp_path / "out", SETTINGS)
    assert sorted(packed(tmp_path / "out")) == sorted(row["url"] for row in rows[6:8])
    for path, reason in reasons.items():
        said = report.rejected[f"{server.url}/{path}"]
        assert "cannot be downloaded: " in said
        assert reason in said
    assert "Connection refused" in report.rejected["http://127.0.0.1:9/x.mp4"]
    assert "its scheme is not http, https or one of s3, gs, hf" in report.rejected["ftp://127.0.0.1/x.mp4"]
    assert "it is no valid URL" in report.rejected["http://[bad/x.mp4"]
    assert "it is a web page (HTML)" in report.rejected[f"{server.url}/a/page.mp4"]
    assert report.account["left_out"]["cannot be downloaded"]["count"] == 9
    assert report.account["found"] == 12
    assert server.requests["/404/x.mp4"] == server.requests["/huge/x.mp4"] == 1
    assert server.requests["/silent/x.mp4"] == server.requests["/cut/1.mp4"] == 3
    assert not (tmp_path / "out/.packing").exists()


def test_a_server_that_sends_a_byte_at_a_time_is_ended_by_the_time_limit(server, tmp_path):
    rows = [{"url": f"{server.url}/drip/x.mp4"}, {"url": f"{server.url}/a/1.mp4"}]
    settings = SETTINGS.model_copy(update={"seconds_per_file": 1.0})
    report = pack_folder(table_of(tmp_path / "t.jsonl", rows), tmp_path / "out", settings)
    assert "cannot be downloaded: took longer than 1 s" in report.rejected[rows[0]["url"]]
    assert list(packed(tmp_path / "out")) == [rows[1]["url"]]


def test_a_download_appears_whole_or_not_at_all(server, tmp_path):
    size = fetch(LIMITS, (f"{server.url}/a/1.mp4", tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == (server.folder / "1.mp4").read_bytes()
    assert size == (tmp_path / "x").stat().st_size
    for path in ("cut/1.mp4", "endless", "silent"):
        with pytest.raises(DownloadError):
            fetch(LIMITS, (f"{server.url}/{path}", tmp_path / "y"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_rows_without_a_url_are_named_and_rows_with_the_same_url_are_one_sample(server, tmp_path):
    one, two = (f"{server.url}/a/{i}.mp4" for i in (1, 2))
    columns = {"url": [one, None, two, one, " "], "caption": ["first", "lost", "other", "second", "lost too"]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    report = pack_folder(tmp_path / "t.parquet", tmp_path / "out", SETTINGS)
    samples = packed(tmp_path / "out")
    assert samples[one].read_json()["captions"] == ["first", "second"]
    assert (report.videos, report.account["found"]) == (2, 4)
    assert report.account["left_out"] == {
        "a row without a URL or path": {
            "count": 2,
            "names": {"t.parquet, row 2": "names no file", "t.parquet, row 5": "names no file"},
        }
    }
    assert any("1 row with the URL of an earlier row" in note for note in report.account["notes"])
    assert report.tables[0]["rows"] == 5
    assert server.requests["/a/1.mp4"] == 1


def test_paths_in_a_table_are_absolute_or_relative_to_it_and_missing_ones_are_named(files, tmp_path):
    (tmp_path / "videos").mkdir()
    shutil.copy(files / "1.mp4", tmp_path / "videos")
    rows = [{"path": "videos/1.mp4", "text": "near"}, {"path": str(files / "2.mp4"), "text": "far"}]
    rows += [{"path": "videos/none.mp4", "text": "gone"}, {"path": f"file://{files}/3.mp4", "text": "by URL"}]
    report = pack_folder(table_of(tmp_path / "t.jsonl", rows), tmp_path / "out", SETTINGS)
    texts = {source: one.read_text() for source, one in packed(tmp_path / "out").items()}
    assert texts == {row["path"]: row["text"] for row in rows if row["text"] != "gone"}
    assert "does not exist" in report.rejected["videos/none.mp4"]
    assert (tmp_path / "videos/1.mp4").exists()


def test_tables_that_name_no_files_are_refused(tmp_path):
    for rows, says in (
        ([{"words": "x", "more": 1}], "needs a column of URLs or paths .* found words, more"),
        ([{"url": ""}], "none of the 1 rows of .* names a file"),
    ):
        with pytest.raises(InputError, match=says):
            pack_folder(table_of(tmp_path / "t.jsonl", rows), tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match=r"t\.jsonl needs the column 'link_to' \(file_column\)"):
        pack_folder(tmp_path / "t.jsonl", tmp_path / "out", SETTINGS.model_copy(update={"file_column": "link_to"}))
    with pytest.raises(InputError, match="is a table, whose own captions are used"):
        pack_folder(tmp_path / "t.jsonl", tmp_path / "out", SETTINGS.model_copy(update={"captions": "x.csv"}))


def test_a_packing_of_urls_that_was_stopped_goes_on_without_asking_twice_and_ends_in_the_same_bytes(
    server, tmp_path, monkeypatch
):
    rows = [{"url": f"{server.url}/a/{i}.mp4", "caption": f"clip {i}"} for i in range(8)]
    rows.insert(2, {"url": f"{server.url}/404/x.mp4"})
    table = table_of(tmp_path / "t.jsonl", rows)
    pack_folder(table, tmp_path / "whole", SETTINGS)
    server.requests.clear()
    real, most = writing.write_shard, []

    def stop_at_third(job):
        most.append(len(list(PackingState(tmp_path / "out", None).scratch.iterdir())))
        if job.path.name == "00002.tar":
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(writing, "write_shard", stop_at_third)
    settings = SETTINGS.model_copy(update={"downloads": 1})
    with pytest.raises(KeyboardInterrupt):
        pack_folder(table, tmp_path / "out", settings)
    monkeypatch.undo()
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    assert max(most) <= 2 + 2 + 1 + 1  # a shard's samples, twice the downloads at once
    pack_folder(table, tmp_path / "out", settings)
    assert set(server.requests.values()) == {1}
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_downloads_that_are_gone_or_other_when_a_packing_goes_on_are_fetched_again(server, tmp_path, monkeypatch):
    served = shutil.copytree(server.folder, tmp_path / "served")
    server.folder = served
    rows = [{"url": f"{server.url}/a/{i}.mp4"} for i in range(4)]
    table = table_of(tmp_path / "t.jsonl", rows)
    monkeypatch.setattr(writing, "write_shard", lambda job: pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        pack_folder(table, tmp_path / "out", SETTINGS)
    monkeypatch.undo()
    shutil.rmtree(PackingState(tmp_path / "out", None).scratch)
    shutil.copy(served / "7.mp4", served / "0.mp4")
    with pytest.raises(InputError, match="has changed while"):
        pack_folder(table, tmp_path / "out", SETTINGS)
    pack_folder(table, tmp_path / "out", SETTINGS)
    assert packed(tmp_path / "out")[rows[0]["url"]].read("mp4") == (served / "7.mp4").read_bytes()


def test_parts_of_a_table_share_its_urls_and_finish_like_one_command(server, tmp_path):
    rows = [{"url": f"{server.url}/a/{i}.mp4", "caption": f"clip {i}"} for i in range(8)]
    rows += [{"url": f"{server.url}/b/1.mp4", "caption": "a copy"}, {"url": None}, {"url": f"{server.url}/404/x.mp4"}]
    table = table_of(tmp_path / "t.jsonl", rows)
    whole = pack_folder(table, tmp_path / "whole", SETTINGS)
    server.requests.clear()
    for text in ("3/3", "1/3", "2/3"):
        pack_folder(table, tmp_path / "out", SETTINGS.model_copy(update={"part": text}))
    assert set(server.requests.values()) == {1}
    report = finish_parts(table, tmp_path / "out", SETTINGS.model_copy(update={"finish": True}))
    assert set(server.requests.values()) == {1}
    assert (
        (report.account["found"], report.account["used"]) == (whole.account["found"], whole.account["used"]) == (11, 8)
    )
    assert report.tables == whole.tables


@pytest.mark.slow
def test_scenes_of_a_url_are_cut(server, tmp_path):
    pytest.importorskip("scenedetect", reason="needs PySceneDetect")
    halves = [np.full((40, 64, 64, 3), gray, np.uint8) for gray in (30, 200)]
    served = shutil.copytree(server.folder, tmp_path / "served")
    server.folder = served
    write_video(served / "two.mp4", np.concatenate(halves), 20)
    table = table_of(tmp_path / "t.jsonl", [{"url": f"{server.url}/a/{name}.mp4"} for name in ("two", "1")])
    settings = SETTINGS.model_copy(update={"cut_scenes": True, "samples_per_shard": 1, "min_frames": 6})
    report = pack_folder(table, tmp_path / "out", settings)
    assert (report.videos, report.frames, report.shards) == (2, 80, 2)


@pytest.mark.slow
def test_the_command_packs_a_table_and_goes_on_after_a_kill(server, tmp_path):
    rows = [{"url": f"{server.url}/a/{i}.mp4", "caption": f"clip {i}"} for i in range(8)]
    table = table_of(tmp_path / "t.jsonl", rows)
    command = ["tools/make_shards.py", str(table), str(tmp_path / "out"), "samples_per_shard=1", "workers=2"]
    script = Script([*command, "downloads=2"])
    script.until(lambda: any((tmp_path / "out").glob("*.tar")))
    script.kill()
    printed = succeed(*command)
    assert "8 videos (40 frames" in printed
    assert len(packed(tmp_path / "out")) == 8
