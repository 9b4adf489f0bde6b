"""A web server on loopback that serves a folder in ranges, and a proxy that injects faults before a real server."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Faults:
    """What a server does wrong, by turns: `queue` has the next faults; else each with `share` at random, seeded.

    Faults: "500", "503", "403", "404", "cut" (half of the body), "slow" (0.2 s), "reset" (no response at all).
    """

    def __init__(self, queue: list[str] | None = None, share: float = 0.0, kinds: tuple[str, ...] = ("500", "cut")):
        self.queue, self.share, self.kinds = queue or [], share, kinds
        self.requests: list[str] = []
        self.injected = 0
        self._random, self._lock = random.Random(0), threading.Lock()

    def next(self, request: str) -> str:
        with self._lock:
            self.requests.append(request)
            fault = ""
            if self.queue:
                fault = self.queue.pop(0)
            elif self._random.random() < self.share:
                fault = self._random.choice(self.kinds)
            self.injected += bool(fault)
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults

    def log_message(self, *_: Any) -> None:
        pass

    def _fetch(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        raise NotImplementedError

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.faults.next(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        if fault == "reset":
            self.close_connection = True
            return
        if fault.isdecimal():
            self._answer(int(fault), [("Content-Length", "0")], b"")
            return
        if fault == "slow":
            time.sleep(0.2)
        status, headers, answer = self._fetch(body)
        if fault == "cut" and self.command == "GET":
            answer, self.close_connection = answer[: len(answer) // 2], True
        self._answer(status, headers, b"" if self.command == "HEAD" else answer)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve


def _folder_handler(folder: Path) -> type[_Handler]:
    class Handler(_Handler):
        def _fetch(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                return 404, [("Content-Length", "0")], b""
            data, state = path.read_bytes(), path.stat()
            headers = [("ETag", f'"{state.st_size}-{state.st_mtime_ns}"'), ("Accept-Ranges", "bytes")]
            wanted, status = self.headers.get("Range", ""), 200
            if wanted.startswith("bytes="):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                headers.append(("Content-Range", f"bytes {first}-{last or len(data) - 1}/{len(data)}"))
                data, status = data[int(first) : int(last) + 1 if last else None], 206
            return status, [*headers, ("Content-Length", str(len(data)))], data

    return Handler


def _proxy_handler(port: int) -> type[_Handler]:
    class Handler(_Handler):
        def _fetch(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            upstream.request(self.command, self.path, body or None, headers)
            found = upstream.getresponse()
            data = found.read()
            kept = [(k, v) for k, v in found.getheaders() if k.lower() not in ("transfer-encoding", "connection")]
            if not any(name.lower() == "content-length" for name, _ in kept):
                kept.append(("Content-Length", str(len(data))))
            upstream.close()
            return found.status, kept, data

    return Handler


@contextlib.contextmanager
def served(faults: Faults, folder: Path | None = None, port: int | None = None) -> Iterator[str]:
    """The URL of a server of `folder`, or of a proxy before the server at `port`, with faults."""
    handler = _folder_handler(folder) if folder is not None else _proxy_handler(port or 0)
    handler.faults = faults
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
