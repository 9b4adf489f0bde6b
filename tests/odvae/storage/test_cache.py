"""The cache of blocks: what is requested once, again or anew; its limit; damaged blocks; local copies."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from object_server import Faults, served
from remote_files import DATA, write_memory

from odvae.running.errors import InputError
from odvae.running.hashing import checksum
from odvae.shards.samples import Member, Sample
from odvae.storage.cache import Cache, cache
from odvae.storage.files import BLOCK, _places, local_copy, read_range
from odvae.storage.paths import open_path
from odvae.storage.states import file_state


def test_what_is_in_the_cache_is_not_requested_again(folder):
    pytest.importorskip("aiohttp")
    faults = Faults()
    with served(faults, folder) as url:
        path = open_path(f"{url}/a.bin")
        assert read_range(path, 100, 2 * BLOCK) == DATA[100 : 100 + 2 * BLOCK]
        requests = len(faults.requests)
        assert read_range(path, 5, 3 * BLOCK - 5) == DATA[5 : 3 * BLOCK]
        assert len(faults.requests) == requests


def test_another_version_is_not_served_from_the_cache(bucket):
    path = write_memory(bucket / "a", b"x" * 100)
    assert read_range(path, 0, 100) == b"x" * 100
    write_memory(path, b"y" * 100)
    assert read_range(path, 0, 100) == b"y" * 100


def test_a_local_copy_has_the_bytes_and_is_made_anew_for_another_version(bucket, folder):
    assert local_copy(folder / "a.bin") == folder / "a.bin"
    path = write_memory(bucket / "index.arrow", DATA)
    copy = local_copy(path)
    assert copy.read_bytes() == DATA
    assert local_copy(path) == copy
    write_memory(path, b"new")
    assert local_copy(path).read_bytes() == b"new"


def test_the_cache_stays_within_its_limit_and_keeps_what_was_used_last(tmp_path):
    kept = Cache(tmp_path / "small", limit=100_000)
    first = kept.path("u", "1", "first")
    for i in range(40):
        path = kept.path("u", "1", str(i))
        kept.put(path, bytes(9000))
        os.utime(path, (i + 1, i + 1))
        kept.put(first, bytes(9000))
    total = sum(path.stat().st_size for path in kept.folder.rglob("*") if path.is_file())
    assert total <= kept.limit
    assert kept.get(first, 9000) == bytes(9000)
    assert kept.get(kept.path("u", "1", "0"), 9000) is None


def test_a_damaged_block_of_the_cache_is_read_again(bucket):
    path = write_memory(bucket / "a", b"right" * 100)
    read_range(path, 0, 5)
    (block,) = cache().folder.rglob("*.block")
    block.write_bytes(b"wrong" + block.read_bytes()[5:])
    assert read_range(path, 0, 5) == b"right"


def test_a_cache_size_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("ODVAE_CACHE_GIB", "much")
    with pytest.raises(InputError, match="ODVAE_CACHE_GIB=much"):
        cache()


def test_threads_that_need_the_same_block_request_it_once(folder):
    pytest.importorskip("aiohttp")
    faults = Faults(share=1.0, kinds=("slow",))
    with served(faults, folder) as url:
        path = open_path(f"{url}/a.bin")
        file_state(path)
        faults.requests.clear()
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(lambda i: read_range(path, i, 100), range(6)))
        assert found == [DATA[i : i + 100] for i in range(6)]
        assert len(faults.requests) == 1


def test_a_block_that_was_damaged_on_its_way_is_requested_again(bucket):
    shard = write_memory(bucket / "00000.tar", b"head" + b"video")
    sample = Sample("k", shard, {"mp4": Member(4, 5, checksum(b"video"))})
    cache().put(next(iter(_places(shard, file_state(shard), 0, 0).values())), b"head" + b"wrong")
    assert read_range(shard, 4, 5) == b"wrong"
    assert sample.read("mp4") == b"video"
    assert read_range(shard, 4, 5) == b"video"
