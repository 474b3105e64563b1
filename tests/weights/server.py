"""A small web server on the loopback interface that misbehaves on request."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `behaviour[path]` changes how. `seen` lists (method, path, headers)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.behaviour: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Connection", "close")  # or a client may reuse the connection while it closes
        super().end_headers()

    def _answer(self, method: str) -> None:
        server, path = self.server, self.path.partition("?")[0]
        server.seen.append((method, path, {k.lower(): v for k, v in self.headers.items()}))
        behaviour = server.behaviour.get(path, server.behaviour.get(f"{method} {path}", ""))
        self.close_connection = True
        if behaviour == "silent":
            server.over.wait(20)
            return
        if behaviour == "hangs up once":
            server.behaviour.clear()
            return
        if behaviour.isdecimal() or (path not in server.files and path not in server.redirects):
            self.send_response(int(behaviour or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = server.files[path]
        start, wanted = 0, self.headers.get("Range")
        if wanted and "norange" not in behaviour:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        for name, value in server.headers.get(path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        if method == "HEAD":
            return
        rest = content[start:]
        if "half" in behaviour:
            rest = content[start : len(content) // 2] if start < len(content) // 2 or "norange" in behaviour else rest
        if "always" in behaviour:
            rest = content[start : start + 1000]
        if behaviour == "trickle":
            for i in range(len(rest)):
                self.wfile.write(rest[i : i + 1])
                self.wfile.flush()
                if server.over.wait(0.05):
                    return
        self.wfile.write(rest)

    def do_GET(self) -> None:
        with suppress(OSError):
            self._answer("GET")

    def do_HEAD(self) -> None:
        with suppress(OSError):
            self._answer("HEAD")


@contextmanager
def serving() -> Iterator[Server]:
    """A running server; its silent connections end with it."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def add_repository(server: Server, repo: str, files: dict[str, bytes], licence: str | None = "apache-2.0") -> str:
    """Publish files as the hub does; returns the commit. Large ones (.safetensors, .bin) are named by sha256."""
    commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    info = {
        "_id": "0",
        "id": repo,
        "modelId": repo,
        "sha": commit,
        "private": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": name} for name in files],
        "cardData": {"license": licence} if licence else {},
    }
    for place in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main", f"/api/models/{repo}/revision/{commit}"):
        server.files[place] = json.dumps(info).encode()
        server.headers[place] = {"Content-Type": "application/json"}
    for name, content in files.items():
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        large = name.endswith((".safetensors", ".bin"))
        etag = hashlib.sha256(content).hexdigest() if large else git
        for revision in ("main", commit):
            path = f"/{repo}/resolve/{revision}/{name}"
            server.files[path] = content
            server.headers[path] = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
            if large:
                server.headers[path] |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
    return commit
