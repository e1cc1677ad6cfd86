"""A hub on loopback whose files, and whose bad habits, a test chooses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """A file of the hub. `identity` None: its SHA-256; "git": a Git blob's hash; else what the server claims."""

    data: bytes
    identity: str | None = None
    claimed_size: int | None = None
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """Bodies of the next requests end after so many bytes."""
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Status and headers of the answers to the next requests, of any kind."""
    changes_to: bytes | None = None
    """Content after the next GET."""
    wrong_ranges: bool = False
    seconds_per_chunk: float = 0.0
    """Pause after each 64 KiB of a body."""
    needs_token: str | None = None

    def etag(self) -> str:
        if self.identity == "git":
            return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()
        return hashlib.sha256(self.data).hexdigest() if self.identity is None else self.identity


@dataclass
class Hub:
    """A running server: `files` by `org/repo/name`."""

    endpoint: str
    files: dict[str, Served]
    listings: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """Method, path, Range and Authorization of every request."""
    other_host: str | None = None
    """Contents are given out by this address, to which the hub redirects."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def n_bytes_asked(self) -> int:
        """Bytes of all ranges that were asked for."""
        spans = [re.fullmatch(r"bytes=(\d+)-(\d+)", found or "") for _, _, found, _ in self.requests]
        return sum(int(span[2]) - int(span[1]) + 1 for span in spans if span)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_arguments: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.hub
        with hub.lock:
            hub.requests.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.path.startswith("/api/models/"):
            self._list(self.path.removeprefix("/api/models/"))
            return
        match = re.fullmatch(r"/(?:cdn/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        served = hub.files.get(f"{match[1]}/{match[2]}") if match else None
        if served is None:
            self._status(404, {})
            return
        with hub.lock:
            refusal = served.refusals.pop(0) if served.refusals else None
        if refusal is not None:
            self._status(*refusal)
            return
        at_hub = not self.path.startswith("/cdn/")
        if at_hub and served.needs_token and self.headers.get("Authorization") != f"Bearer {served.needs_token}":
            self._status(401, {})
        elif at_hub and hub.other_host is not None:
            size = len(served.data) if served.claimed_size is None else served.claimed_size
            where = {"Location": f"{hub.other_host}/cdn{self.path}"}
            self._status(302, where | {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{served.etag()}"'})
        else:
            self._send(served, body)

    def _list(self, repository: str) -> None:
        listing = self.hub.listings.get(repository)
        if listing is None:
            self._status(404, {})
            return
        data = listing if isinstance(listing, bytes) else json.dumps(listing).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send(self, served: Served, body: bool) -> None:
        data, begin, status = served.data, 0, 200
        end = len(data)
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if span and served.ranges and body:
            begin, end, status = int(span[1]), min(int(span[2]) + 1, len(data)), 206
            if begin >= len(data):
                self._status(416, {"Content-Range": f"bytes */{len(data)}"})
                return
        self.send_response(status)
        size = end - begin if body or served.claimed_size is None else served.claimed_size
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{served.etag()}"')
        if status == 206:
            shift = int(served.wrong_ranges)
            self.send_header("Content-Range", f"bytes {begin + shift}-{end - 1 + shift}/{len(data)}")
        self.end_headers()
        if not body:
            return
        with self.hub.lock:
            cut = served.cuts.pop(0) if served.cuts else None
            if served.changes_to is not None:
                served.data, served.changes_to = served.changes_to, None
        body_bytes = data[begin:end][:cut]
        with suppress(OSError):
            for at in range(0, len(body_bytes), 1 << 16) if served.seconds_per_chunk else ():
                self.wfile.write(body_bytes[at : at + (1 << 16)])
                time.sleep(served.seconds_per_chunk)
            if not served.seconds_per_chunk:
                self.wfile.write(body_bytes)
        self.close_connection = True

    def _status(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve_hub(files: dict[str, Served], listings: dict[str, Any] | None = None) -> Iterator[Hub]:
    """A hub with these files on a free port of loopback."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}", files, listings or {})
    handler.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
