"""A server on this machine that hands out files as the net does: in part, cut, damaged, or not at all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Served:
    """What a server has, and what it was asked.

    Attributes:
        files: Path to content.
        faults: Path to a list of faults, one used up by each request: ``("cut", N)`` sends N bytes of what was asked
            for and hangs up, ``("status", N)`` refuses, ``("whole",)`` sends all whatever was asked for, ``("page",
            BYTES)`` sends something else with status 200, ``("shifted",)`` answers with another range, ``("unsized",)``
            gives no length.
        asked: Path and Range header of each request.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[tuple]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def put(self, path: str, content: bytes, *faults: tuple) -> str:
        self.files[path], self.faults[path] = content, list(faults)
        return f"{self.address}{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        served: Served = self.server.served
        wanted = self.headers.get("Range")
        served.asked.append((self.path, wanted))
        fault = served.faults[self.path].pop(0) if served.faults.get(self.path) else ("none",)
        content = served.files.get(self.path)
        if content is None or fault[0] == "status":
            self.send_error(fault[1] if content is not None else 404)
            return
        if fault[0] == "page":
            content, wanted = fault[1], None
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault[0] != "whole" else 0
        if start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if fault[0] == "shifted" else start
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if fault[0] == "unsized":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # whoever asked has seen enough
            self.wfile.write(body[: fault[1]] if fault[0] == "cut" else body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def serving() -> Iterator[Served]:
    """Run a server while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.served = Served(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
