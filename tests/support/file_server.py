"""A local HTTP server with files, and with paths that fail in the ways that servers fail."""

import contextlib
import http.server
import threading
import time
from collections import Counter
from pathlib import Path


class FileServer:
    """Serves a folder at `url`; `requests` counts the requests of each path.

    `/404/...` is missing, `/500/N` works after N failures, `/cut/NAME` ends half-way (`/cut-once/NAME` only at first),
    `/silent` sends a few bytes and nothing more, `/drip` a byte at a time, `/huge` claims a terabyte, `/endless` sends
    without end and without a length.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, Counter[str]()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.stopping = threading.Event()

    def __enter__(self) -> "FileServer":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                outer.requests[path] += 1
                kind, _, name = path.strip("/").partition("/")
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer._answer(self, kind, name, outer.requests[path])

        return Handler

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, kind: str, name: str, count: int) -> None:
        def head(status: int, length: int | None) -> None:
            handler.send_response(status)
            if length is not None:
                handler.send_header("Content-Length", str(length))
            handler.end_headers()

        if kind == "404":
            head(404, 0)
        elif kind == "500" and count <= int(name.partition("/")[0]):
            head(503, 0)
        elif kind == "huge":
            head(200, 1 << 40)
            handler.wfile.write(b"x" * 100)
        elif kind == "endless":
            head(200, None)
            while not self.stopping.is_set():
                handler.wfile.write(b"x" * (1 << 16))
        elif kind in ("silent", "drip"):
            head(200, 1000)
            while not self.stopping.is_set():
                handler.wfile.write(b"x")
                handler.wfile.flush()
                self.stopping.wait(60 if kind == "silent" else 0.1)
        else:
            data = (self.folder / (name.rpartition("/")[2] or name)).read_bytes()
            head(200, len(data))
            is_cut = kind == "cut" or (kind == "cut-once" and count == 1)
            handler.wfile.write(data[: len(data) // 2] if is_cut else data)
            time.sleep(0)
