"""A stand-in for the Hugging Face hub on this machine: takes what `huggingface_hub` uploads, and keeps it in memory."""

import base64
import contextlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import HfApi


class Hub:
    """`repos[type, name]` has the files of each repository; `private` the names of private ones."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
        self.private: set[str] = set()
        self.tokens = {"may-write"}
        self.url = ""

    def client(self, token: str = "may-write") -> HfApi:
        return HfApi(endpoint=self.url, token=token)

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, dict]:
        if token not in self.tokens:
            return 403, {"error": "the token may not write"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repos[asked.get("type") or "model", name] = self.repos[asked.get("type") or "model", name]
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(name)
            return 200, {"url": f"{self.url}/{name}"}
        _, _, plural, owner, name, action, *_ = path.split("/")
        files = self.repos[plural.removesuffix("s"), f"{owner}/{name}"]
        if action == "preupload":
            asked = json.loads(body)["files"]
            return 200, {
                "files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            }
        assert action == "commit", path
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
        return 200, {
            "success": True,
            "commitUrl": f"{self.url}/{owner}/{name}/commit/{'0' * 40}",
            "commitOid": "0" * 40,
        }


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, answer = hub.answer(self.path.partition("?")[0], body, token)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
