"""A real S3 server on loopback (`rclone serve s3`), read and written through s3fs. Skipped without them."""

import os
import secrets

import pytest
from object_server import Faults, served
from s3_servers import deny, moto_server, needs_moto, needs_s3, rclone_server, upload_folder, use_s3

from odvae.storage import client
from odvae.storage.files import BLOCK, atomic_file, local_copy, read_range
from odvae.storage.listing import list_files
from odvae.storage.paths import StorageError, open_path
from odvae.storage.states import file_state

pytestmark = needs_s3

DATA = secrets.token_bytes(2 * BLOCK + 77)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(URL, folder of the buckets)"""
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "videos" / "some").mkdir(parents=True)
    (folder / "videos" / "some" / "a.bin").write_bytes(DATA)
    with rclone_server(folder) as url:
        yield url, folder


@pytest.fixture(autouse=True)
def _environment(server, monkeypatch):
    use_s3(monkeypatch, server[0])


def test_ranges_and_copies_equal_the_file():
    path = open_path("s3://videos/some/a.bin")
    assert read_range(path, BLOCK - 3, 100) == DATA[BLOCK - 3 : BLOCK + 97]
    assert read_range(path, 2 * BLOCK, 1000) == DATA[2 * BLOCK :]
    assert local_copy(path).read_bytes() == DATA
    assert file_state(path).size == len(DATA)


def test_what_is_written_is_there_whole_or_not_at_all(server):
    path = open_path("s3://videos/out/00000.tar")
    with atomic_file(path) as file:
        file.write(DATA)
        assert not (server[1] / "videos" / "out" / "00000.tar").exists()
    assert (server[1] / "videos" / "out" / "00000.tar").read_bytes() == DATA
    assert [one.name for one in list_files(path.parent)] == ["00000.tar"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://videos/some/b.bin", "does not exist"),
        ("s3://videos/some", "is a folder"),
        ("s3://nowhere/a.bin", "nowhere/a.bin"),
    ],
)
def test_what_is_not_there_is_named(url, words):
    with pytest.raises(StorageError, match=words):
        read_range(open_path(url), 0, 1)


def test_wrong_credentials_are_named(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(StorageError, match=r"a\.bin: no rights"):
        read_range(open_path("s3://videos/some/a.bin"), 0, 1)


def test_a_forked_child_has_a_client_of_its_own():
    path = open_path("s3://videos/some/a.bin")
    read_range(path, 0, 1)
    child = os.fork()
    if not child:
        os._exit(0 if read_range(path, 2 * BLOCK, 9) == DATA[2 * BLOCK : 2 * BLOCK + 9] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_faults_between_client_and_server_lose_nothing(server, tmp_path, monkeypatch):
    faults = Faults(share=0.3, kinds=("500", "503", "cut", "reset", "slow"))
    with served(faults, port=int(server[0].rpartition(":")[2])) as url:
        use_s3(monkeypatch, url)
        path = open_path("s3://videos/some/a.bin")
        for i in range(40):
            monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / f"cache-{i}"))
            offset = i * 997 * 53 % len(DATA)
            assert read_range(path, offset, 3000) == DATA[offset : offset + 3000]
    assert faults.injected > 1


@needs_moto
def test_a_bucket_without_rights_or_that_is_gone_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(b"x" * 1000)
    with moto_server() as url:
        use_s3(monkeypatch, url)
        upload_folder(tmp_path, "films")
        path = open_path("s3://films/a.bin")
        assert read_range(path, 10, 5) == b"xxxxx"
        deny("films", "s3:PutObject")
        other = path.with_name("b.bin")
        with pytest.raises(StorageError, match=r"films/b\.bin: no rights"), atomic_file(other) as file:
            file.write(b"1")
        deny("films", "s3:GetObject")
        monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "another"))
        with pytest.raises(StorageError, match=r"films/a\.bin: no rights"):
            read_range(path, 10, 5)
        deny("films")
        client.client(path).rm("films", recursive=True)
        with pytest.raises(StorageError, match=r"films/a\.bin: there is no such bucket|films/a\.bin is gone"):
            read_range(path, 10, 5)
