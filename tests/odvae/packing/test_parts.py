"""Packing in parts on any machines in any order: the finished folder, and what is refused by name."""

import json
import os
import shutil

import numpy as np
import pytest
from scripts import Script, fail, succeed

from odvae.index.building import open_index
from odvae.index.folder_index import FolderIndex
from odvae.index.video_rows import VideoIndexer
from odvae.packing import writing
from odvae.packing.finishing import finish_parts
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError
from odvae.shards.facts import ExamineLimits
from odvae.shards.tars import index_shards, list_shards
from odvae.shards.unfinished import describe_unfinished, is_unfinished
from odvae.video.video_io import write_video

SETTINGS = PackingSettings(workers=0, samples_per_shard=2)


def part(text, **changes):
    return SETTINGS.model_copy(update={"part": text, **changes})


FINISH = SETTINGS.model_copy(update={"finish": True})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve videos with captions, one of them broken, two copies of others, an unused text and a table."""
    source = tmp_path_factory.mktemp("parts") / "source"
    (source / "sub").mkdir(parents=True)
    for i in range(12):
        path = source / ("sub" if i % 3 else ".") / f"{i}.mp4"
        write_video(path, np.full((5, 16, 16, 3), 20 * i, np.uint8), 8)
        path.with_suffix(".txt").write_text(f"gray {i}")
    (source / "broken.mp4").write_bytes(b"no video")
    for ending in ("mp4", "txt"):
        shutil.copy(source / f"0.{ending}", source / f"z_copy_of_0.{ending}")
        shutil.copy(source / f"sub/1.{ending}", source / f"sub/z_copy_of_1.{ending}")
    (source / "notes.txt").write_text("nothing")
    (source / "metadata.csv").write_text("file_name,text\n3.mp4,from the table\ngone.mp4,gone\n")
    return source


@pytest.fixture
def source(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "source")  # with the files' times


def counts(report):
    """Of the account; which of two copies is the first depends on the parts."""
    left_out = {reason: group["count"] for reason, group in report.account["left_out"].items()}
    return report.account["found"], report.account["used"], left_out, report.account["without_caption"]


def assert_copies_are_used_once(out, report):
    """By the folder's index, whether a shard has them or not."""
    index = FolderIndex(out / "index.arrow", out)
    keys = [index.key(row) for row in range(len(index))]
    assert len(set(keys)) == len(keys) == report.videos
    copied = shutil.copytree(out, out.with_name("copied"), copy_function=shutil.copyfile)  # other times: indexed again
    again = open_index(copied, list_shards(copied, "?"), VideoIndexer(ExamineLimits(0, 9.0, 4.0)))
    assert [again.key(row) for row in range(len(again))] == keys
    assert report.account["left_out"]["same bytes as another"]["count"] == 2


def read_samples(out):
    index = FolderIndex(out / "index.arrow", out)
    return {index.sample(row).read_json()["source"]: index.sample(row) for row in range(len(index))}


def test_parts_in_any_order_finish_with_the_report_of_one_command(source, tmp_path):
    whole = pack_folder(source, tmp_path / "whole", SETTINGS)
    for text in ("2/4", "4/4", "1/4", "3/4"):
        report = pack_folder(source, tmp_path / "out", part(text))
        assert report.part == text
        assert is_unfinished(tmp_path / "out")
    report = finish_parts(source, tmp_path / "out", FINISH)
    assert counts(report) == counts(whole)
    assert (report.tables, report.classes) == (whole.tables, whole.classes)
    assert_copies_are_used_once(tmp_path / "out", report)
    assert (report.videos, report.frames, report.seconds) == (whole.videos, whole.frames, whole.seconds)
    assert report.account["found"] == report.account["used"] + sum(
        group["count"] for group in report.account["left_out"].values()
    )
    names = [path.name for path in list_shards(tmp_path / "out", "?")]
    assert len(names) == report.shards
    assert all(name.startswith(("part001-0000", "part002-0000", "part003-0000", "part004-0000")) for name in names)
    others = [path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".tar"]
    assert sorted(others) == ["README.md", "index", "index.arrow", "packing.json"]
    assert finish_parts(source, tmp_path / "out", FINISH) == report
    assert pack_folder(source, tmp_path / "out", part("3/4")) == report  # a part after the end


def test_a_part_that_is_run_again_writes_nothing_again_and_its_shards_are_the_same_anywhere(source, tmp_path):
    for out in ("one", "two"):
        pack_folder(source, tmp_path / out, part("2/3"))
    shards = list_shards(tmp_path / "one", "?")
    before = [path.stat().st_mtime_ns for path in shards]
    pack_folder(source, tmp_path / "one", part("2/3"))
    assert [path.stat().st_mtime_ns for path in shards] == before
    for path in shards:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_finish_names_missing_parts_with_their_commands(source, tmp_path):
    with pytest.raises(InputError, match=r"has no parts to finish: .* part=1/N"):
        finish_parts(source, tmp_path / "out", FINISH)
    pack_folder(source, tmp_path / "out", part("2/3"))
    with pytest.raises(InputError) as error:
        finish_parts(source, tmp_path / "out", FINISH)
    message = str(error.value)
    assert "2 parts of 3 must be run first" in message
    for number in (1, 3):
        assert f"{source} {tmp_path / 'out'} samples_per_shard=2 workers=0 part={number}/3" in message


def test_parts_of_another_number_or_with_other_settings_are_refused(source, tmp_path):
    pack_folder(source, tmp_path / "out", part("1/3"))
    with pytest.raises(InputError, match=r"is being packed in 3 parts, so it cannot be packed in 4 parts too"):
        pack_folder(source, tmp_path / "out", part("2/4"))
    with pytest.raises(InputError, match=r"in 3 parts, so it cannot be packed by one command"):
        pack_folder(source, tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match=r"part 1/3 .* other settings; .*\n  min_frames: was 1, now 3"):
        pack_folder(source, tmp_path / "out", part("2/3", min_frames=3))
    pack_folder(source, tmp_path / "out", part("2/3"))
    pack_folder(source, tmp_path / "out", part("3/3"))
    with pytest.raises(InputError, match=r"was packed with other settings \(min_frames=1, now 3\): .*part=1/3"):
        finish_parts(source, tmp_path / "out", FINISH.model_copy(update={"min_frames": 3}))


def test_files_that_changed_between_the_parts_are_packed_when_their_part_is_run_again(source, tmp_path):
    for text in ("1/2", "2/2"):
        pack_folder(source, tmp_path / "out", part(text))
    write_video(source / "new.mp4", np.full((5, 16, 16, 3), 255, np.uint8), 8)
    with pytest.raises(InputError) as error:
        finish_parts(source, tmp_path / "out", FINISH)
    (line,) = [line for line in str(error.value).splitlines() if "was packed before files changed" in line]
    text = line.rpartition("part=")[2]
    pack_folder(source, tmp_path / "out", part(text))
    report = finish_parts(source, tmp_path / "out", FINISH)
    assert "new.mp4" in read_samples(tmp_path / "out")
    assert counts(report) == counts(pack_folder(source, tmp_path / "whole", SETTINGS))


def test_a_part_without_files_is_complete(source, tmp_path):
    reports = [pack_folder(source, tmp_path / "out", part(f"{i}/40")) for i in range(1, 41)]
    assert any(report.videos == 0 for report in reports)
    report = finish_parts(source, tmp_path / "out", FINISH)
    assert counts(report) == counts(pack_folder(source, tmp_path / "whole", SETTINGS))
    assert_copies_are_used_once(tmp_path / "out", report)


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "1/0"])
def test_what_is_no_part_is_named(text):
    with pytest.raises(ValueError, match="part"):
        PackingSettings(part=text)
    with pytest.raises(ValueError, match="finish=true without part"):
        PackingSettings(part="1/4", finish=True)


def test_a_folder_that_is_not_finished_says_so_with_its_shards(source, tmp_path, monkeypatch):
    real, written = writing.shard_writer, []

    def stop_at_third(path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return real(path)

    monkeypatch.setattr(writing, "shard_writer", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(source, tmp_path / "out", SETTINGS)
    assert "is not finished: 2 shards so far" in describe_unfinished(tmp_path / "out")
    assert len(index_shards(list_shards(tmp_path / "out", "?"))) == 4
    assert describe_unfinished(source) == ""


def test_files_of_the_user_in_an_unfinished_folder_are_neither_written_over_nor_removed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "shard_writer", lambda path: pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        pack_folder(source, tmp_path / "out", SETTINGS)
    monkeypatch.undo()
    (tmp_path / "out/00001.tar").write_bytes(b"mine")
    (tmp_path / "out/mine.txt").write_text("mine too")
    with pytest.raises(InputError, match=r"00001\.tar was not written by this packing: move it elsewhere"):
        pack_folder(source, tmp_path / "out", SETTINGS)
    assert (tmp_path / "out/00001.tar").read_bytes() == b"mine"
    (tmp_path / "out/00001.tar").rename(tmp_path / "mine.tar")
    pack_folder(source, tmp_path / "out", SETTINGS)
    assert (tmp_path / "out/mine.txt").read_text() == "mine too"


def test_a_source_that_changes_while_it_is_packed_is_named_and_the_same_command_goes_on(source, tmp_path, monkeypatch):
    real = writing.write_shard

    def change_first(job):
        if job.path.name == "00002.tar":
            write_video(job.samples[0][0], np.full((5, 16, 16, 3), 77, np.uint8), 8)
        return real(job)

    monkeypatch.setattr(writing, "write_shard", change_first)
    with pytest.raises(InputError, match="has changed while the folder was packed"):
        pack_folder(source, tmp_path / "out", SETTINGS)
    monkeypatch.undo()
    (source / "sub/5.mp4").unlink()  # another shard than before
    report = pack_folder(source, tmp_path / "out", SETTINGS)
    assert report.account == pack_folder(source, tmp_path / "whole", SETTINGS).account
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert len(list((tmp_path / "out").glob("*.tar"))) == len(list((tmp_path / "whole").glob("*.tar")))


def test_another_source_is_refused_by_an_unfinished_folder(source, tmp_path):
    pack_folder(source, tmp_path / "out", part("1/1"))
    other = shutil.copytree(source, tmp_path / "other")
    pack_folder(other, tmp_path / "out", part("1/1"))  # the same files elsewhere
    (other / "0.mp4").unlink()
    with pytest.raises(InputError, match=r"was not packed from .*other but from .*source: choose another folder"):
        pack_folder(other, tmp_path / "out", part("1/1"))


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_same_command_goes_on(source, tmp_path):
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 255, (5, 64, 64, 3)).astype(np.uint8)
        write_video(source / f"noise{i}.mp4", noise, 8)
    command = ["tools/make_shards.py", str(source), str(tmp_path / "out"), "samples_per_shard=3", "workers=1"]
    largest = max(path.stat().st_size for path in source.rglob("noise*.mp4"))
    said = fail(*command, file_size=largest + 20_000)
    assert "part" not in said
    assert ".tar: File too large. What was written before is intact; run the same command again" in said
    there = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")}
    assert there
    assert "16 videos" in succeed(*command)
    for name, data in there.items():
        assert (tmp_path / "out" / name).read_bytes() == data


@pytest.mark.slow
def test_parts_that_are_killed_and_run_again_end_in_the_same_shards(source, tmp_path):
    command = ["tools/make_shards.py", str(source)]
    for number in (3, 1, 2):
        succeed(*command, str(tmp_path / "calm"), "samples_per_shard=1", f"part={number}/3")
    running = [
        Script([*command, str(tmp_path / "out"), "samples_per_shard=1", f"part={number}/3"]) for number in (1, 2, 3)
    ]
    for number, script in enumerate(running, start=1):
        script.until(lambda number=number: any((tmp_path / "out").glob(f"part00{number}-*.tar")))
        script.kill()
    for number in (2, 3, 1):
        said = succeed(*command, str(tmp_path / "out"), "samples_per_shard=1", f"part={number}/3")
        assert "when all parts are packed:" in said
        assert "samples_per_shard=1 finish=true" in said
    printed = succeed(*command, str(tmp_path / "out"), "samples_per_shard=1", "finish=true")
    assert "12 videos (60 frames" in printed
    for path in (tmp_path / "calm").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert not [path for path in os.listdir(tmp_path / "out") if path.endswith(".partial")]
    account = json.loads((tmp_path / "out/packing.json").read_text())["account"]
    assert account["used"] == 12
