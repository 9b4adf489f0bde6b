"""Making a folder's index: what is made, when it is made again, and how parts of the work are joined."""

import json
import os
import shutil
import tarfile
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from small import tar_of

from odvae.cluster.parts import Part
from odvae.index import building
from odvae.index.building import INDEX, finish_index, index_one, index_part, open_index
from odvae.index.rows import CAPTIONS_UNREADABLE, read_header
from odvae.index.video_rows import VideoIndexer
from odvae.running.errors import InputError
from odvae.running.hashing import checksum
from odvae.shards import facts as facts_module
from odvae.shards import facts_journal
from odvae.shards.facts import ExamineLimits
from odvae.shards.samples import split_position
from odvae.shards.tars import list_shards
from odvae.video.decoding import VideoError
from odvae.video.video_io import VideoFacts

FACTS = VideoFacts(9, 32, 48, 8.0, 1.125, False, [(0, 0)])
LIMITS = ExamineLimits(0, 60.0, 4.0)


@pytest.fixture
def examined(monkeypatch):
    """Keys of the samples that were examined, in place of which FACTS are found; `b...` cannot be decoded."""
    keys = []

    def examine(sample):
        keys.append(sample.key)
        if sample.key.startswith("b"):
            raise VideoError(f"{sample.name}: cannot be decoded")
        return FACTS

    monkeypatch.setattr(facts_module, "examine_sample", examine)
    return keys


def own(key: str, **about) -> list[tuple[str, bytes]]:
    """The members of a sample as packing writes them."""
    about = {"sha256": f"{key}99", **asdict(FACTS), **about}
    return [(f"{key}.mp4", f"video {key}".encode()), (f"{key}.json", json.dumps(about).encode())]


def foreign(key: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.mp4", f"video {key}".encode()), (f"{key}.txt", b"a caption")]


def write(folder, shards: dict[str, list[tuple[str, bytes]]]):
    folder.mkdir(exist_ok=True)
    for name, members in shards.items():
        tar_of(folder / name, members)
    return folder


def opened(folder, limits=LIMITS):
    return open_index(folder, list_shards(folder, "?"), VideoIndexer(limits))


def rows(index):
    return [index.row(i) for i in range(len(index))]


def test_a_row_has_what_is_known_of_its_sample(tmp_path, examined):
    long = [("c.mp4", b"x" * 5000), ("c.json", b'{"captions": ["one", "two"], "label": 3, "group": "g01", "fps": "x"}')]
    bad = [("b.mp4", b"broken"), ("b.txt", b"\xff")]
    folder = write(tmp_path / "s", {"0.tar": own("a", label="cat"), "1.tar": [*long, *bad, ("d.txt", b"alone")]})
    index = opened(folder)
    a, c, b, d = rows(index)
    assert (a.key, a.facts, a.label, a.captions, a.group) == ("a", FACTS, "cat", 0, "")
    assert (c.facts, c.label, c.captions, c.group) == (FACTS, "3", 2, "g01")
    assert (b.facts, b.captions, b.problem) == (None, CAPTIONS_UNREADABLE, ": cannot be decoded")
    assert (d.facts, d.captions, d.problem) == (None, 1, " has no video, only txt")
    assert examined == ["c", "b"]
    assert [one.split for one in (a, b)] == [split_position("a", ""), split_position("b", "")]
    assert c.split == split_position("any other", "g01")
    for one, sample in zip((a, c, b, d), index.select(lambda chunk: chunk.split >= 0), strict=True):
        assert {name: checksum(data) for name, data in sample.read_all().items()} == {
            name: member.checksum for name, member in one.members.items()
        }
    assert [shard.ignored for shard in index.header.shards] == [{}, {"its fps": 1}]


def test_large_members_are_hashed_in_pieces(tmp_path, examined, monkeypatch):
    folder = write(tmp_path / "s", {"0.tar": [*own("a"), *foreign("c")]})
    whole = rows(opened(folder))
    shutil.rmtree(folder / "index")
    (folder / INDEX).unlink()
    monkeypatch.setattr("odvae.index.shard_rows._PIECE", 7)
    assert rows(opened(folder)) == whole


def test_only_what_was_added_or_changed_is_indexed_again(tmp_path, examined, capsys):
    folder = write(tmp_path / "s", {f"{i}.tar": foreign(f"a{i}") for i in range(3)})
    opened(folder)
    assert opened(folder).header == read_header(folder / INDEX)
    examined.clear()
    write(folder, {"3.tar": foreign("a3"), "1.tar": [*foreign("a1"), *foreign("c1")]})
    before = (folder / "index/0.tar.arrow").stat().st_mtime_ns
    index = opened(folder)
    assert examined == ["a1", "c1", "a3"]
    assert (folder / "index/0.tar.arrow").stat().st_mtime_ns == before
    assert f"{folder / '1.tar'} has changed since it was indexed" in capsys.readouterr().err
    assert [one.key for one in rows(index)] == ["a0", "a1", "c1", "a2", "a3"]
    (folder / "0.tar").unlink()
    assert [one.key for one in rows(opened(folder))] == ["a1", "c1", "a2", "a3"]
    assert len(examined) == 3


def test_a_copied_folder_is_compared_by_checksums_and_a_shard_of_the_same_size_is_noticed(tmp_path, examined, capsys):
    folder = write(tmp_path / "s", {f"{i}.tar": foreign(f"a{i}") for i in range(2)})
    before = rows(opened(folder))
    examined.clear()
    for shard in folder.glob("*.tar"):
        os.utime(shard, ns=(1, 1))
    assert rows(opened(folder)) == before
    assert examined == []
    assert {one.mtime_ns for one in read_header(folder / INDEX).shards} == {1}
    assert "changed" not in capsys.readouterr().err
    write(folder, {"1.tar": foreign("a9")})
    assert [one.key for one in rows(opened(folder))] == ["a0", "a9"]
    assert examined == ["a9"]
    assert "1.tar has changed since it was indexed" in capsys.readouterr().err


def test_another_decoder_examines_again_only_what_was_examined(tmp_path, examined, monkeypatch):
    folder = write(tmp_path / "s", {"0.tar": own("a"), "1.tar": [*own("c"), *foreign("d"), *foreign("b")]})
    before = rows(opened(folder))
    examined.clear()
    monkeypatch.setattr("odvae.index.video_rows.READER", "av 0")
    monkeypatch.setattr(facts_journal, "READER", "av 0")
    assert rows(opened(folder)) == before
    assert examined == ["d", "b"]
    assert rows(opened(folder)) == before
    assert examined == ["d", "b"]
    assert [read_header(folder / f"index/{i}.tar.arrow").reader for i in range(2)] == ["", "av 0"]


@pytest.mark.parametrize("cause", ["limit", "system"])
def test_other_limits_examine_again_only_what_exceeded_them(tmp_path, examined, monkeypatch, cause):
    found = []

    def failing(sample):
        found.append(sample.key)
        error = VideoError(f"{sample.name}: took longer than 60 s")
        error.cause = cause
        if sample.key == "a" and len(found) < 4:
            raise error
        return FACTS

    monkeypatch.setattr(facts_module, "examine_sample", failing)
    folder = write(tmp_path / "s", {"0.tar": [*foreign("a"), *foreign("c")], "1.tar": foreign("d")})
    assert [one.limited for one in rows(opened(folder))] == [True, False, False]
    assert found == ["a", "c", "d"]
    again = opened(folder)
    if cause == "limit":  # the same limits would be exceeded again
        assert found == ["a", "c", "d"]
        again = opened(folder, ExamineLimits(0, 90.0, 4.0))
    assert found == ["a", "c", "d", "a"]
    assert [(one.problem, one.facts) for one in rows(again)] == [("", FACTS)] * 3
    opened(folder)
    assert len(found) == 4


def test_parts_in_any_order_and_killed_ones_give_the_index_of_one_pass(tmp_path, examined):
    shards = {f"{i:05d}.tar": [*own(f"a{i}"), *foreign(f"c{i}")] for i in range(7)}
    whole = opened(write(tmp_path / "whole", shards))
    folder = write(tmp_path / "parts", shards)
    listed, indexer = list_shards(folder, "?"), VideoIndexer(LIMITS)
    parts = [Part(number, 3) for number in (3, 1, 2)]
    with pytest.raises(InputError, match=r"7 of the 7 shards in .* have no right index: 00000\.tar, 00001\.tar"):
        finish_index(folder, listed, indexer)
    for part in parts[:2]:
        index_part(folder, listed, indexer, part)
    with pytest.raises(InputError, match="have no right index") as error:
        finish_index(folder, listed, indexer)
    assert [one.name for one in listed if f" {one.name}" in str(error.value)] == ["00001.tar", "00004.tar"]
    index_part(folder, listed, indexer, parts[2])
    examined.clear()
    for part in parts:
        index_part(folder, listed, indexer, part)
    merged = finish_index(folder, listed, indexer)
    assert examined == []
    assert rows(merged) == rows(whole)
    assert [one.mtime_ns for one in merged.header.shards] == [one.stat().st_mtime_ns for one in listed]
    assert opened(folder).header == merged.header


def test_two_samples_with_the_same_key_are_named(tmp_path, examined, monkeypatch):
    folder = write(tmp_path / "s", {"0.tar": own("a"), "1.tar": [*own("c"), *own("a")], "2.tar": own("d")})
    with pytest.raises(InputError, match=rf"^key a is in {folder}/0\.tar and in {folder}/1\.tar$"):
        opened(folder)
    monkeypatch.setattr("odvae.index.duplicates.checksum", lambda key: 7)  # equal hashes of different keys are none
    write(folder, {"1.tar": own("c")})
    assert [one.key for one in rows(opened(folder))] == ["a", "c", "d"]


def test_a_copy_in_another_part_of_a_packing_is_left_out_and_in_the_same_part_it_is_an_error(tmp_path, examined):
    one, two = "0123456789abcdef", "fedcba9876543210"
    names = ("part001-00000.tar", "part002-00000.tar", "part002-00001.tar")
    folder = write(tmp_path / "s", dict(zip(names, (own(one), [*own(two), *own(one)], own("c")), strict=True)))
    assert [row.key for row in rows(opened(folder))] == [one, two, "c"]
    by_shard = opened(folder).select(lambda chunk: chunk.frames > 0).by_shard()
    assert [(shard.name, [sample.key for sample in samples]) for shard, samples in by_shard] == [
        (names[0], [one]),
        (names[1], [two]),
        (names[2], ["c"]),
    ]
    os.utime(folder / names[1], ns=(1, 1))
    assert [row.key for row in rows(opened(folder))] == [one, two, "c"]
    write(folder, {names[2]: own(two)})
    with pytest.raises(InputError, match=rf"key {two} is in {folder}/part002-00000.tar and in .*part002-00001.tar"):
        opened(folder)
    write(folder, {names[0]: own("c"), names[1]: own("c"), names[2]: own(one)})
    with pytest.raises(InputError, match="key c is in"):  # no hash of a file's bytes
        opened(folder)


def test_a_shard_is_indexed_when_it_is_written_and_the_folder_at_the_end(tmp_path, examined, monkeypatch):
    folder = write(tmp_path / "s", {"0.tar": own("a"), "1.tar": own("c")})
    for shard in list_shards(folder, "?"):
        index_one(shard, VideoIndexer(LIMITS))
    monkeypatch.setattr(VideoIndexer, "index", lambda self, shards, advance: iter(list(shards)[1:]))
    assert [one.key for one in rows(opened(folder))] == ["a", "c"]


@pytest.mark.parametrize("damage", [b"", b"ARROW1 and no more", None])
@pytest.mark.parametrize("name", [INDEX, "index/0.tar.arrow"])
def test_a_damaged_index_is_made_again_and_said(tmp_path, examined, capsys, name, damage):
    folder = write(tmp_path / "s", {"0.tar": foreign("a")})
    before = rows(opened(folder))
    if name != INDEX:
        (folder / INDEX).unlink()
    if damage is None:  # of a later format
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data.replace(b'"format": 1}', b'"format": 9}'))
    else:
        (folder / name).write_bytes(damage)
    assert rows(opened(folder)) == before
    errors = capsys.readouterr().err
    assert f"{folder / name}" in errors
    assert "it is made again" in errors


def test_without_write_permission_the_index_is_in_the_users_cache(tmp_path, examined, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write(tmp_path / "s", {"0.tar": foreign("a")})
    (folder / "index").write_text("in the way")
    before = rows(opened(folder))
    assert rows(opened(folder)) == before
    assert examined == ["a"]
    assert [path.name for path in (tmp_path / "cache").rglob("*.arrow")] == ["index.arrow", "0.tar.arrow"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "0.tar"))
    with pytest.raises(InputError, match=r"can be written neither into .*XDG_CACHE_HOME"):
        opened(folder)


def test_a_broken_shard_is_the_error_that_it_was(tmp_path, examined):
    folder = write(tmp_path / "s", {"0.tar": own("a"), "1.tar": own("c")})
    (folder / "1.tar").write_bytes((folder / "1.tar").read_bytes()[:700])
    with pytest.raises(InputError, match=r"1\.tar is (truncated|not a complete tar file)"):
        opened(folder)
    shutil.copy(folder / "0.tar", tmp_path / "again.tar")
    with tarfile.open(folder / "1.tar", "w"):
        pass
    assert [one.key for one in rows(opened(folder))] == ["a"]


def test_rows_are_written_while_later_shards_are_read(tmp_path, examined, monkeypatch):
    """A folder of any number of shards is indexed with the rows of a few in memory."""
    folder = write(tmp_path / "s", {f"{i}.tar": own(f"a{i}") for i in range(9)})
    events = []
    write_index, read = building.write_shard_index, facts_module.checked_about
    monkeypatch.setattr(building, "write_shard_index", lambda *args: (events.append("write"), write_index(*args)))
    monkeypatch.setattr("odvae.index.video_rows.checked_about", lambda data: (events.append("read"), read(data))[1])
    opened(folder)
    waiting = np.cumsum([1 if event == "read" else -1 for event in events])
    assert waiting.max() <= 2
    assert Counter(events) == {"read": 9, "write": 9}
