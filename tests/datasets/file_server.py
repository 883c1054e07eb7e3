"""A server of one file on this machine, which behaves as badly as it is told to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

CONTENT = np.random.default_rng(0).bytes(1 << 20)
CHUNK = 1 << 16  # what comes in smaller pieces before a break is lost
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """A server of one file; the attributes say how it behaves, ``requests`` what was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag: str | None = '"first"'
        self.ranges = True
        self.breaks: list[int] = []  # after how many bytes of each answer the connection breaks
        self.stalls = False
        self.status = 200
        self.shift = 0  # by how many bytes the ranges that it sends are wrong
        self.headers: dict[str, str] = {}
        self.requests: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/speed.csv"
        self.go_on = threading.Event()
        self.waits = False


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        if server.status != 200:
            self.send_response(server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, size = 0, len(server.content)
        asked = self.headers.get("Range")
        if asked and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first += server.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size - first))
        self.end_headers()
        if server.waits:
            server.go_on.wait(10)
        body = server.content[first:]
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)
        if server.stalls:
            self.wfile.flush()
            server.go_on.wait(10)


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
