"""The index of a folder of shards at a URL: found, made, written there or into the cache, compared with the shards."""

import json
from dataclasses import asdict

import pytest
from object_server import Faults, served
from small import tar_of
from url_folders import copied, new_url, use_own_caches

from odvae.cluster.parts import Part
from odvae.index.building import INDEX, find_shards, finish_index, index_part, open_index
from odvae.index.rows import read_header
from odvae.index.video_rows import VideoIndexer
from odvae.running.errors import InputError
from odvae.shards import facts as facts_module
from odvae.shards.facts import ExamineLimits
from odvae.shards.samples import ChangedShardError
from odvae.shards.tars import list_shards
from odvae.storage import client, files
from odvae.storage.listing import list_names
from odvae.storage.paths import StorageError, open_path
from odvae.video.video_io import VideoFacts

FACTS = VideoFacts(9, 32, 48, 8.0, 1.125, False, [(0, 0)])


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    use_own_caches(tmp_path, monkeypatch)


def members(*keys: str) -> list[tuple[str, bytes]]:
    """The members of samples as packing writes them."""
    found = []
    for key in keys:
        about = {"sha256": f"{key}99", **asdict(FACTS)}
        found += [(f"{key}.mp4", f"video {key}".encode() * 50), (f"{key}.json", json.dumps(about).encode())]
    return found


@pytest.fixture
def folder(tmp_path):
    """A folder of two shards, without an index."""
    (tmp_path / "shards").mkdir()
    tar_of(tmp_path / "shards/00000.tar", members("a0", "a1"))
    tar_of(tmp_path / "shards/00001.tar", members("b0"))
    return tmp_path / "shards"


def opened(url):
    return open_index(url, find_shards(url, "?"), VideoIndexer(ExamineLimits(0, 60.0, 4.0)))


def rows(index):
    return [index.row(number) for number in range(len(index))]


def test_an_index_is_written_next_to_the_shards_and_has_the_rows_of_a_local_one(folder):
    url = copied(folder, new_url())
    index = opened(url)
    assert rows(index) == rows(opened(folder))
    assert index.path == url / INDEX
    assert list_names(url / "index") == {"00000.tar.arrow", "00001.tar.arrow"}
    assert all(shard.version for shard in read_header(url / INDEX).shards)
    assert [one.read("mp4") for one in index.select(lambda chunk: chunk.frames > 0)] == [
        dict(members(key))[f"{key}.mp4"] for key in ("a0", "a1", "b0")
    ]


def test_an_index_that_was_uploaded_with_its_shards_is_taken_and_no_shard_is_read(folder, monkeypatch):
    opened(folder)
    url = copied(folder, new_url())
    monkeypatch.setattr(files, "read_range", None)
    assert opened(url).key(2) == "b0"


def test_a_shard_that_was_replaced_or_added_is_indexed_again_and_no_other(folder, capsys):
    url = copied(folder, new_url())
    opened(url)
    tar_of(folder / "00001.tar", members("c0"))  # of the same size
    tar_of(folder / "00002.tar", members("d0"))
    copied(folder, url)
    tar_of(folder / "00000.tar", members("a0", "a1"))
    index = opened(url)
    assert [index.key(row) for row in range(len(index))] == ["a0", "a1", "c0", "d0"]
    assert capsys.readouterr().err.count("has changed since it was indexed") == 1


def test_a_shard_of_the_same_size_under_an_uploaded_index_is_named_when_it_is_read(folder):
    opened(folder)
    url = copied(folder, new_url())
    tar_of(folder / "00001.tar", members("c0"))
    copied(folder, url)
    index = opened(url)
    assert index.sample(0).read("mp4")
    with pytest.raises(ChangedShardError, match=r"00001\.tar:b0\.mp4: its checksum is"):
        index.sample(2).read("mp4")


def test_a_shard_that_is_replaced_while_it_is_read_is_an_error_that_says_so(folder):
    url = copied(folder, new_url())
    index = opened(url)
    assert index.sample(2).read("json")
    tar_of(folder / "00001.tar", members("c0", "c1"))
    client.client(url).pipe_file(f"{url.path}/00001.tar", (folder / "00001.tar").read_bytes())  # by somebody else
    for block in files.cache().folder.rglob("*.block"):
        block.unlink()
    with pytest.raises(StorageError, match=r"00001\.tar was replaced while it was read"):
        index.sample(2).read("mp4")


def test_where_the_storage_cannot_be_written_the_index_is_in_the_users_cache(folder, tmp_path):
    pytest.importorskip("aiohttp")
    local = rows(opened(folder))
    with served(Faults(), folder) as url:
        index = opened(open_path(url))  # its index has the list of the shards, which this server has not
        assert rows(index) == local
        for file in (folder / INDEX, *(folder / "index").iterdir()):
            file.unlink()
        shards = [open_path(url) / name for name in ("00000.tar", "00001.tar")]
        made = open_index(open_path(url), shards, VideoIndexer(ExamineLimits(0, 60.0, 4.0)))
        assert rows(made) == local
        assert made.path.is_relative_to(tmp_path / "user")


def test_parts_make_the_index_of_a_url_in_any_order(folder):
    url = copied(folder, new_url())
    shards, indexer = list_shards(url, "?"), VideoIndexer(ExamineLimits(0, 60.0, 4.0))
    index_part(url, shards, indexer, Part(2, 2))
    with pytest.raises(InputError, match=r"1 of the 2 shards .* 00000\.tar"):
        finish_index(url, shards, indexer)
    index_part(url, shards, indexer, Part(1, 2))
    assert rows(finish_index(url, shards, indexer)) == rows(opened(folder))


def test_a_storage_that_fails_while_videos_are_examined_leaves_no_video_out(folder, monkeypatch):
    tar_of(folder / "00001.tar", [("b0.mp4", b"foreign")])
    url = copied(folder, new_url())
    broken = [True]

    def examine(sample):
        if broken:
            broken.pop()
            raise StorageError(f"{sample.shard}: 6 attempts failed")
        return FACTS

    monkeypatch.setattr(facts_module, "examine_sample", examine)
    with pytest.raises(StorageError, match=r"00001\.tar: 6 attempts failed"):
        opened(url)
    assert [row.problem for row in rows(opened(url))] == ["", "", ""]


@pytest.mark.parametrize(("name", "words"), [("missing", "does not exist"), ("empty", r"holds no \.tar shard")])
def test_a_url_without_shards_is_an_error_that_names_it(folder, name, words):
    url = copied(folder, new_url())
    if name == "empty":
        url = copied(folder, new_url() / "below").parent
    with pytest.raises(InputError, match=f"{url / name if name == 'missing' else url}.*{words}"):
        opened(url / name if name == "missing" else url)
