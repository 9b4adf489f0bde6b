"""Files by URL: ranged reads with a cache, retries, errors, forks, writing; on a loopback server and in memory."""

import os
import random
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from object_server import Faults, served

from ldm.experiment import Experiment
from odvae.running.errors import InputError
from odvae.running.hashing import checksum
from odvae.running.settings import make_settings
from odvae.running.worker_pool import WorkerPool
from odvae.shards.samples import ChangedShardError, Member, Sample
from odvae.storage import client, states
from odvae.storage.cache import Cache, cache
from odvae.storage.files import BLOCK, _places, atomic_file, local_copy, read_range
from odvae.storage.listing import list_files
from odvae.storage.paths import StorageError, check_local, is_remote, open_path
from odvae.storage.states import file_state, says_no_bucket

DATA = random.Random(1).randbytes(3 * BLOCK + 1000)


@pytest.fixture(autouse=True)
def _own_cache_and_short_waits(tmp_path, monkeypatch):
    monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(states, "_states", {})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(DATA)
    return tmp_path / "served"


@pytest.fixture
def bucket():
    return open_path(f"memory://{secrets.token_hex(4)}")


def read_memory(path: Path, data: bytes) -> Path:
    with atomic_file(path) as file:
        file.write(data)
    return path


def test_a_plain_text_is_a_path_and_a_url_keeps_its_slashes(tmp_path):
    assert open_path(str(tmp_path)) == tmp_path
    assert open_path(f"file://{tmp_path}") == tmp_path
    assert not is_remote(tmp_path)
    remote = open_path("memory://bucket/folder") / "00000.tar"
    assert is_remote(remote)
    assert str(remote) == "memory://bucket/folder/00000.tar"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://host/a", "unknown scheme ftp://"),
        ("s3:/bucket/a", "two slashes.*s3://bucket/a"),
        ("memory://", "no bucket"),
    ],
)
def test_urls_that_cannot_be_opened_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        open_path(text)


def test_a_missing_client_names_how_it_is_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs gcsfs.*pip install 'odvae\[gcs\]'"):
        open_path("gs://bucket/a")


@pytest.mark.parametrize(("offset", "size"), [(0, 10), (BLOCK - 5, 10), (BLOCK, BLOCK), (3 * BLOCK, 5000), (9, 0)])
def test_ranges_equal_those_of_the_local_file(folder, bucket, offset, size):
    remote = read_memory(bucket / "a.bin", DATA)
    expected = DATA[offset : offset + size]
    assert read_range(folder / "a.bin", offset, size) == expected
    assert read_range(remote, offset, size) == expected
    assert read_range(remote, offset, size) == expected  # from the cache


def test_what_is_in_the_cache_is_not_requested_again(folder):
    pytest.importorskip("aiohttp")
    faults = Faults()
    with served(faults, folder) as url:
        path = open_path(f"{url}/a.bin")
        assert read_range(path, 100, 2 * BLOCK) == DATA[100 : 100 + 2 * BLOCK]
        requests = len(faults.requests)
        assert read_range(path, 5, 3 * BLOCK - 5) == DATA[5 : 3 * BLOCK]
        assert len(faults.requests) == requests


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "reset"])
def test_transient_faults_are_repeated(folder, fault):
    pytest.importorskip("aiohttp")
    faults = Faults()
    with served(faults, folder) as url:
        path = open_path(f"{url}/a.bin")
        file_state(path)
        faults.queue = [fault, fault]
        assert read_range(path, 7, 100_000) == DATA[7:100_007]
    assert faults.injected == 2


def test_refusals_are_not_repeated_and_name_the_url(folder):
    pytest.importorskip("aiohttp")
    faults = Faults()
    with served(faults, folder) as url:
        path = open_path(f"{url}/a.bin")
        file_state(path)
        faults.queue = ["403"] * 9
        with pytest.raises(StorageError, match=r"a\.bin: no rights"):
            read_range(path, 0, 10)
        assert len(faults.queue) == 8
        faults.queue = []
        with pytest.raises(StorageError, match=r"missing\.bin does not exist"):
            read_range(open_path(f"{url}/missing.bin"), 0, 10)


def test_a_server_that_stays_broken_is_an_error_with_the_number_of_attempts(folder):
    pytest.importorskip("aiohttp")
    faults = Faults()
    with served(faults, folder) as url:
        path = open_path(f"{url}/a.bin")
        file_state(path)
        faults.queue = ["503"] * 99
        with pytest.raises(StorageError, match=f"{client.ATTEMPTS} attempts failed"):
            read_range(path, 0, 10)


def test_a_file_that_goes_half_way_is_named(folder):
    pytest.importorskip("aiohttp")
    with served(Faults(), folder) as url:
        path = open_path(f"{url}/a.bin")
        read_range(path, 0, 10)
        (folder / "a.bin").unlink()
        with pytest.raises(StorageError, match=r"a\.bin is gone"):
            read_range(path, 2 * BLOCK, 10)


def test_all_reads_are_right_where_one_in_five_requests_fails(folder, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    faults = Faults(share=0.2, kinds=("500", "503", "cut", "reset"))
    with served(faults, folder) as url:
        path = open_path(f"{url}/a.bin")
        for i in range(60):
            offset = (i * 997 * 131) % len(DATA)
            monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / f"cache-{i}"))  # nothing is in it
            assert read_range(path, offset, 4000) == DATA[offset : offset + 4000]
    assert faults.injected > 5


def test_a_forked_child_reads_after_its_parent_has(folder):
    pytest.importorskip("aiohttp")
    with served(Faults(), folder) as url:
        path = open_path(f"{url}/a.bin")
        assert read_range(path, 0, 10) == DATA[:10]
        child = os.fork()
        if not child:
            ok = read_range(path, 2 * BLOCK, 10) == DATA[2 * BLOCK : 2 * BLOCK + 10]
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_another_version_is_not_served_from_the_cache(bucket):
    path = read_memory(bucket / "a", b"x" * 100)
    assert read_range(path, 0, 100) == b"x" * 100
    read_memory(path, b"y" * 100)
    assert read_range(path, 0, 100) == b"y" * 100


def test_a_folder_is_no_file_and_a_missing_file_is_named(bucket):
    read_memory(bucket / "folder" / "a", b"1")
    with pytest.raises(StorageError, match="is a folder"):
        file_state(bucket / "folder")
    with pytest.raises(StorageError, match="does not exist"):
        read_range(bucket / "b", 0, 1)


def test_files_are_listed_by_name_without_those_of_sub_folders(bucket, tmp_path):
    for name in ("b", "a", "below/c"):
        read_memory(bucket / "f" / name, b"1")
    assert [path.name for path in list_files(bucket / "f")] == ["a", "b"]
    with pytest.raises(StorageError, match="does not exist"):
        list_files(bucket / "g")


def test_an_upload_that_fails_leaves_what_was_there(bucket):
    path = read_memory(bucket / "a", b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_half()
    assert read_range(path, 0, 10) == b"old"


def test_a_local_copy_has_the_bytes_and_is_made_anew_for_another_version(bucket, folder):
    assert local_copy(folder / "a.bin") == folder / "a.bin"
    path = read_memory(bucket / "index.arrow", DATA)
    copy = local_copy(path)
    assert copy.read_bytes() == DATA
    assert local_copy(path) == copy
    read_memory(path, b"new")
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
    path = read_memory(bucket / "a", b"right" * 100)
    read_range(path, 0, 5)
    (block,) = cache().folder.rglob("*.block")
    block.write_bytes(b"wrong" + block.read_bytes()[5:])
    assert read_range(path, 0, 5) == b"right"


def test_a_cache_size_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("ODVAE_CACHE_GIB", "much")
    with pytest.raises(InputError, match="ODVAE_CACHE_GIB=much"):
        cache()


def test_a_sample_is_read_and_checked_where_its_shard_is_remote(bucket):
    shard = read_memory(bucket / "00000.tar", b"head" + b"video" + b"caption")
    members = {"mp4": Member(4, 5, checksum(b"video")), "txt": Member(9, 7, checksum(b"other"))}
    sample = Sample("k", shard, members)
    sample.prefetch()
    assert sample.read("mp4") == b"video"
    assert Sample("k", shard, {"mp4": Member(4, 5)}).open("mp4").read() == b"video"
    with pytest.raises(ChangedShardError, match=r"00000\.tar:k\.txt"):
        sample.read_all()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3:/bucket/run", "two slashes after its scheme"),
        ("ftp://host/run", "unknown scheme ftp"),
        ("https://host/run", "nothing can be written to a web server"),
        ("memory://", "names no bucket"),
    ],
)
def test_a_run_folder_is_a_path_or_a_url_that_can_be_written(url, words):
    with pytest.raises(InputError, match=words):
        make_settings(Experiment, {"run": url}, [], "config.yaml")
    assert (
        str(make_settings(Experiment, {"run": "memory://b/run"}, [], "config.yaml").folders.vae) == "memory://b/run/vae"
    )


@pytest.mark.parametrize("path", ["runs/demo", "/runs/a:b", "s3/runs"])
def test_paths_are_no_urls(path):
    check_local(path, "run")


def test_the_time_limit_of_a_worker_does_not_run_while_the_storage_is_waited_for(bucket, monkeypatch):
    path = read_memory(bucket / "a", DATA)

    def slow_range(files, name: str, start: int, end: int) -> bytes:
        time.sleep(1.0)
        return DATA[start:end]

    monkeypatch.setattr(type(client.client(path)), "cat_file", slow_range)
    with WorkerPool(lambda offset: len(read_range(path, offset, 10)), workers=1, seconds=0.5) as pool:
        assert pool.result(pool.submit(0)) == 10


def test_an_error_of_the_storage_ends_the_work_of_a_pool_and_is_no_failure_of_a_file(bucket):
    for workers in (0, 1):
        with WorkerPool(lambda name: read_range(bucket / name, 0, 1), workers, seconds=60) as pool:
            ticket = pool.submit("missing")
            with pytest.raises(InputError, match="missing does not exist"):
                pool.result(ticket)


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
    shard = read_memory(bucket / "00000.tar", b"head" + b"video")
    sample = Sample("k", shard, {"mp4": Member(4, 5, checksum(b"video"))})
    cache().put(next(iter(_places(shard, file_state(shard), 0, 0).values())), b"head" + b"wrong")
    assert read_range(shard, 4, 5) == b"wrong"
    assert sample.read("mp4") == b"video"
    assert read_range(shard, 4, 5) == b"video"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("The specified bucket does not exist", True),
        ("bucket/shards/packing.json", False),
        ("s3://my-bucket/shards", False),
        ("No such file: gs://a/bucket.tar", False),
    ],
)
def test_a_path_with_the_word_is_no_missing_bucket(words, says):
    assert says_no_bucket(FileNotFoundError(words)) == says
