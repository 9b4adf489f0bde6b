"""Files by URL: ranged reads, retries, errors, forks, writing; on a loopback server and in memory."""

import os
import time

import pytest
from object_server import Faults, served
from remote_files import DATA, write_memory

from odvae.running.errors import InputError
from odvae.running.hashing import checksum
from odvae.running.worker_pool import WorkerPool
from odvae.shards.samples import ChangedShardError, Member, Sample
from odvae.storage import client
from odvae.storage.files import BLOCK, atomic_file, read_range
from odvae.storage.listing import list_files
from odvae.storage.paths import StorageError, open_path
from odvae.storage.states import file_state


@pytest.mark.parametrize(("offset", "size"), [(0, 10), (BLOCK - 5, 10), (BLOCK, BLOCK), (3 * BLOCK, 5000), (9, 0)])
def test_ranges_equal_those_of_the_local_file(folder, bucket, offset, size):
    remote = write_memory(bucket / "a.bin", DATA)
    expected = DATA[offset : offset + size]
    assert read_range(folder / "a.bin", offset, size) == expected
    assert read_range(remote, offset, size) == expected
    assert read_range(remote, offset, size) == expected  # from the cache


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


def test_a_folder_is_no_file_and_a_missing_file_is_named(bucket):
    write_memory(bucket / "folder" / "a", b"1")
    with pytest.raises(StorageError, match="is a folder"):
        file_state(bucket / "folder")
    with pytest.raises(StorageError, match="does not exist"):
        read_range(bucket / "b", 0, 1)


def test_files_are_listed_by_name_without_those_of_sub_folders(bucket, tmp_path):
    for name in ("b", "a", "below/c"):
        write_memory(bucket / "f" / name, b"1")
    assert [path.name for path in list_files(bucket / "f")] == ["a", "b"]
    with pytest.raises(StorageError, match="does not exist"):
        list_files(bucket / "g")


def test_an_upload_that_fails_leaves_what_was_there(bucket):
    path = write_memory(bucket / "a", b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_half()
    assert read_range(path, 0, 10) == b"old"


def test_a_sample_is_read_and_checked_where_its_shard_is_remote(bucket):
    shard = write_memory(bucket / "00000.tar", b"head" + b"video" + b"caption")
    members = {"mp4": Member(4, 5, checksum(b"video")), "txt": Member(9, 7, checksum(b"other"))}
    sample = Sample("k", shard, members)
    sample.prefetch()
    assert sample.read("mp4") == b"video"
    assert Sample("k", shard, {"mp4": Member(4, 5)}).open("mp4").read() == b"video"
    with pytest.raises(ChangedShardError, match=r"00000\.tar:k\.txt"):
        sample.read_all()


def test_the_time_limit_of_a_worker_does_not_run_while_the_storage_is_waited_for(bucket, monkeypatch):
    path = write_memory(bucket / "a", DATA)

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
