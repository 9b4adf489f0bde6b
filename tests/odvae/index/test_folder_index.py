"""The index of a folder: its files, the samples made from its rows, and chosen subsets."""

import json

import numpy as np
import pyarrow as pa
import pytest

from odvae.index.folder_index import FolderIndex
from odvae.index.merging import merge_indexes
from odvae.index.rows import IndexedShard, IndexRow, read_header, write_shard_index
from odvae.index.selection import RangesOfSelection, Selection
from odvae.running.errors import InputError
from odvae.running.hashing import checksum
from odvae.shards.samples import ChangedShardError, Member, split_position
from odvae.video.video_io import VideoFacts

FACTS = VideoFacts(33, 48, 64, 8.0, 4.125, True, [(0, 0), (24, 96)], transfer="pq", time_steps=[(0.125, 30), (0.25, 2)])


def row(key: str, extension: str = "mp4", facts=FACTS, label=None, offset: int = 0) -> IndexRow:
    members = {extension: Member(offset, 5, checksum(b"video")), "txt": Member(offset + 5, 4, checksum(b"text"))}
    return IndexRow(key, members, split_position(key, "g01"), facts, captions=2, label=label, group="g01")


def write(folder, name: str, rows) -> None:
    (folder / name).write_bytes(b"videotext")
    shard = IndexedShard(name, 9, 1, len(rows), {"its fps": 1})
    write_shard_index(folder / f"{name}.arrow", shard, rows, "av 17", [60.0, 4.0])


@pytest.fixture
def index(tmp_path) -> FolderIndex:
    write(tmp_path, "0.tar", [row("a", label="cat"), row("b")])
    write(tmp_path, "1.tar", [])
    write(tmp_path, "2.tar", [row("c", "webm", label="dog"), IndexRow("d", {}, 0.5, problem="is broken", limited=True)])
    merge_indexes(tmp_path / "index.arrow", [tmp_path / f"{i}.tar.arrow" for i in range(3)])
    return FolderIndex(tmp_path / "index.arrow", tmp_path)


def test_rows_give_the_samples_that_were_written(index, tmp_path):
    assert len(index) == 4
    assert [index.key(i) for i in range(4)] == ["a", "b", "c", "d"]
    assert [index.label(i) for i in range(4)] == ["cat", None, "dog", None]
    third = index.sample(2)
    assert third.shard == tmp_path / "2.tar"
    assert third.members == row("c", "webm").members
    assert third.facts == FACTS
    assert index.facts(3) is None
    assert index.problem(3) == "is broken"
    assert [shard.name for shard in index.header.shards] == ["0.tar", "1.tar", "2.tar"]
    assert index.header.shards[0].ignored == {"its fps": 1}


def test_keys_and_reasons_of_any_bytes_are_kept(tmp_path):
    name = b"\xff\xfe key".decode(errors="surrogateescape")
    write(tmp_path, "0.tar", [row(name)])
    assert FolderIndex(tmp_path / "0.tar.arrow", tmp_path).sample(0).key == name


def test_members_are_compared_with_their_checksums(index, tmp_path):
    sample = index.sample(0)
    assert sample.read("mp4") == sample.open("mp4").read() == b"video"
    assert sample.read_all() == {"mp4": b"video", "txt": b"text"}
    (tmp_path / "0.tar").write_bytes(b"videXtext")
    for read in (lambda: sample.read("mp4"), lambda: sample.open("mp4"), sample.read_all):
        with pytest.raises(ChangedShardError, match=r"0\.tar:a\.mp4: its checksum is .*, that in the index"):
            read()
    (tmp_path / "0.tar").write_bytes(b"vid")
    for read in (lambda: sample.read("mp4"), sample.read_all):
        with pytest.raises(ChangedShardError, match="was truncated after it was indexed"):
            read()


def test_columns_choose_samples(index):
    usable = index.select(lambda chunk: (chunk.frames >= 17) & ~chunk.has_problem)
    assert [sample.key for sample in usable] == ["a", "b", "c"]
    assert [sample.key for sample in usable[1:]] == ["b", "c"]
    assert usable[-1].key == "c"
    assert list(index.select(lambda chunk: chunk.frames > 33)) == []


@pytest.mark.parametrize("largest_in_memory", [1 << 20, 0])
def test_a_merged_index_is_in_chunks_and_equals_its_parts(tmp_path, monkeypatch, largest_in_memory):
    monkeypatch.setattr("odvae.index.merging._SMALL", largest_in_memory)
    monkeypatch.setattr("odvae.index.merging.CHUNK", 3)
    monkeypatch.setattr("odvae.index.folder_index.CHUNK", 3)
    labels = ["cat", None, "dog", "ant"]
    parts = [[row(f"{i}-{j}", ("mp4", "webm")[i % 2], label=labels[(i + j) % 4]) for j in range(i)] for i in range(6)]
    for i, rows in enumerate(parts):
        write(tmp_path, f"{i}.tar", rows)
    merge_indexes(tmp_path / "index.arrow", [tmp_path / f"{i}.tar.arrow" for i in range(6)])
    index = FolderIndex(tmp_path / "index.arrow", tmp_path)
    expected = [(i, one) for i, rows in enumerate(parts) for one in rows]
    assert len(index) == len(expected)
    assert [chunk.rows for chunk in index.chunks] == [3] * 5
    for number, (shard, one) in enumerate(expected):
        sample = index.sample(number)
        assert (sample.key, sample.shard.name) == (one.key, f"{shard}.tar")
        assert (sample.members, sample.facts, index.label(number)) == (one.members, one.facts, one.label)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"index.arrow", *(f"{i}.tar{end}" for i in range(6) for end in ("", ".arrow"))}


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
def test_a_damaged_index_is_named(tmp_path, damage):
    write(tmp_path, "0.tar", [row("a")])
    path = tmp_path / "0.tar.arrow"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="is not an index of shards"):
        FolderIndex(path, tmp_path)


def test_another_format_and_another_table_are_named(tmp_path):
    path = tmp_path / "index.arrow"
    schema = pa.schema([("x", pa.int32())])
    for metadata, message in (({}, "not an index"), ({"index": json.dumps({"format": 9})}, "format 9, this version")):
        with pa.ipc.new_file(str(path), schema.with_metadata(metadata)) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([pa.array([1], pa.int32())], schema=schema))
        with pytest.raises(InputError, match=message):
            read_header(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_a_selection_is_the_chosen_rows(share):
    rng = np.random.default_rng(0)
    mask = rng.random(20_000) < share
    pieces = np.split(mask, [0, 1, 4095, 4096, 9000, 9000])
    chosen, expected = Selection(pieces), np.flatnonzero(mask).tolist()
    assert len(chosen) == len(expected)
    assert list(chosen) == expected
    assert [chosen[i] for i in range(0, len(expected), 97)] == expected[::97]
    assert chosen[: 2 * len(expected) : 3] == expected[::3]
    if expected:
        assert chosen[-1] == expected[-1]
        assert expected[0] in chosen
    assert next((i for i in range(20_000) if not mask[i]), -1) not in chosen
    with pytest.raises(IndexError):
        chosen[len(expected)]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_ranges_of_a_selection_are_its_rows_within_them(share):
    mask = np.random.default_rng(0).random(20_000) < share
    ranges = np.array([[3, 3], [5, 4097], [4100, 4101], [9000, 20_000]])
    chosen = RangesOfSelection(Selection([mask]), ranges)
    expected = [row for first, end in ranges.tolist() for row in range(first, end) if mask[row]]
    assert list(chosen) == expected
    assert [chosen[i] for i in range(-len(expected), len(expected), 97)] == (2 * expected)[::97]
    assert chosen[7:3000:11] == expected[7:3000:11]
    assert list(chosen.between(4090, 10_000)) == [row for row in expected if 4090 <= row < 10_000]
    assert len(RangesOfSelection(Selection([mask]), ranges[:1])) == 0
    with pytest.raises(IndexError):
        chosen[len(expected)]


def test_samples_come_by_shard(index, tmp_path):
    readable = index.select(lambda chunk: chunk.frames > 0)
    found = [(shard.name, [sample.key for sample in samples]) for shard, samples in readable.by_shard()]
    assert found == [("0.tar", ["a", "b"]), ("2.tar", ["c"])]
    ((_, first), _) = readable.by_shard()
    assert [sample.key for sample in first[::-1]] == ["b", "a"]
    assert [len(part) for _, part in first.by_shard()] == [2]


def test_the_chosen_ones_of_any_rows_are_found():
    mask = np.random.default_rng(0).random(20_000) < 0.3
    chosen = Selection([mask])
    for first, end in ((0, 0), (0, 20_000), (4095, 4097), (4096, 8192), (5000, 5001), (123, 17_000)):
        expected = (np.flatnonzero(mask[first:end]) + first).tolist()
        assert list(chosen.between(first, end)) == expected
        assert chosen.between(first, end)[1:5] == expected[1:5]


def test_a_row_is_read_as_it_was_written(index):
    assert index.row(0) == row("a", label="cat")
    assert index.row(3) == IndexRow("d", {}, 0.5, problem="is broken", limited=True)


def test_an_index_with_any_byte_changed_gives_its_rows_or_is_named(index, tmp_path):
    path, rng = tmp_path / "index.arrow", np.random.default_rng(0)
    data = path.read_bytes()
    refused = named = 0
    for position in rng.choice(len(data), size=400, replace=False):
        path.write_bytes(data[:position] + bytes([data[position] ^ int(rng.integers(1, 256))]) + data[position + 1 :])
        try:
            opened = FolderIndex(path, tmp_path)
            for row in range(len(opened)):
                opened.sample(row), opened.label(row), opened.problem(row), opened.row(row)
        except InputError as error:
            refused += 1
            named += "index.arrow" in str(error)
    assert named == refused > 10
