"""A server with the page and an API of canned answers, for tests of the page."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dllama_gpu.api.page import page_response

Answer = Callable[[list[dict[str, str]]], str]


def echo(messages: list[dict[str, str]]) -> str:
    """Says the last message again."""
    return f"You said: {messages[-1]['content']}"


@dataclass
class Behaviour:
    """What the server does; a test changes it as it likes."""

    answer: Answer = echo
    thought: str = ""
    """Comes before the answer, as `reasoning_content`."""
    pause: float = 0.0
    """Seconds between two pieces."""
    hold: threading.Event | None = None
    """The answer's second half waits for it."""
    key: str | None = None
    context: int | None = None
    """Characters that a conversation may have."""
    error: tuple[int, str, dict[str, str]] | None = None
    """Status, message, headers of the next chat answers."""
    error_inside: str | None = None
    """A failure after half of the answer."""
    ends_early: bool = False
    cluster: dict[str, Any] | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of chat requests."""
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when a client left an answer before its end."""


class FakeApi:
    """Serves on a free port of 127.0.0.1 until `close`."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/" or path.startswith("/static/"):
                page = page_response(
                    path.removeprefix("/static/").lstrip("/") or "index.html", self.headers["If-None-Match"]
                )
                if page is None:
                    self._json(404, {"error": {"message": f"there is no {path}"}})
                else:
                    self._send(page.status, page.headers, page.body)
            elif not self._is_allowed():
                return
            elif path == "/v1/models":
                self._json(200, {"object": "list", "data": [{"id": "tiny-model", "context_length": 2048}]})
            elif path == "/api/cluster" and api.behaviour.cluster is not None:
                self._json(200, api.behaviour.cluster)
            else:
                self._json(404, {"error": {"message": f"there is no {path}"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._is_allowed():
                return
            behaviour = api.behaviour
            behaviour.requests.append(body)
            if behaviour.error is not None:
                status, message, headers = behaviour.error
                self._json(status, {"error": {"message": message}}, headers)
                return
            length = sum(len(message["content"]) for message in body["messages"])
            if behaviour.context is not None and length > behaviour.context:
                message = f"the prompt has {length} tokens, but the context holds {behaviour.context}"
                self._json(400, {"error": {"message": message, "code": "context_length_exceeded"}})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                for event in _events(behaviour, body["messages"]):
                    self.wfile.write(f"data: {event}\n\n".encode())
                    self.wfile.flush()
                    time.sleep(behaviour.pause)
            except (BrokenPipeError, ConnectionResetError):
                behaviour.gone.set()
            self.close_connection = True

        def _is_allowed(self) -> bool:
            key = api.behaviour.key
            if key is None or self.headers["Authorization"] == f"Bearer {key}":
                return True
            self._json(401, {"error": {"message": "the API key is wrong or missing"}})
            return False

        def _json(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            self._send(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(body).encode())

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 304:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _events(behaviour: Behaviour, messages: list[dict[str, str]]) -> Iterator[str]:
    text = behaviour.answer(messages)
    pieces = [
        {kind: whole[i : i + 4]}
        for kind, whole in (("reasoning_content", behaviour.thought), ("content", text))
        for i in range(0, len(whole), 4)
    ]
    yield _chunk({"role": "assistant", "content": ""})
    for number, piece in enumerate(pieces):
        if number == len(pieces) // 2:
            if behaviour.hold is not None:
                while not behaviour.hold.wait(0.05):
                    yield _chunk({})  # a client that has left is noticed by writing to it
            if behaviour.error_inside is not None:
                yield json.dumps({"error": {"message": behaviour.error_inside}})
                return
            if behaviour.ends_early:
                return
        yield _chunk(piece)
    yield _chunk({}, finish="stop")
    usage = {"prompt_tokens": 9, "completion_tokens": len(pieces), "total_tokens": 9 + len(pieces)}
    yield json.dumps({"choices": [], "usage": usage})
    yield "[DONE]"


def _chunk(delta: dict[str, str], finish: str | None = None) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def example_cluster(n_nodes: int = 4) -> dict[str, Any]:
    """The state of a cluster that answers two requests."""
    shares = [0.46, 0.28, 0.18, 0.08]
    compute = [9.1, 8.7, 14.2, 9.0]
    nodes = [
        {
            "rank": rank,
            "name": "this machine" if rank == 0 else f"10.0.0.{rank + 1}:9999",
            "host": ["desktop", "laptop", "old-laptop", "pi5"][rank],
            "device": [
                "cpu (avx512, 16 threads)",
                "cpu (avx2, 8 threads)",
                "cpu (avx2, 4 threads)",
                "cpu (neon, 4 threads)",
            ][rank],
            "share": shares[rank] if n_nodes == 4 else 1 / n_nodes,
            "weight_bytes": int(shares[rank] * 4.2e9),
            "kv_cache_bytes": int(shares[rank] * 1.1e9),
            "memory_bytes": [32 << 30, 16 << 30, 8 << 30, 8 << 30][rank],
            "compute_ms": compute[rank],
            "waiting_ms": 14.4 - compute[rank],
            "network_ms": 2.1 + 0.3 * rank,
            "sent_bytes_per_token": 412_000 / (rank + 1),
            "received_bytes_per_token": 640_000,
            "state": "ok",
        }
        for rank in range(n_nodes)
    ]
    return {
        "model": "Llama-3.2-8B-Instruct-Q4_0",
        "context": 8192,
        "uptime_seconds": 7265.0,
        "slots": {"total": 8, "busy": 2},
        "queue": {"waiting": 1, "limit": 64},
        "requests": {"finished": 1284, "failed": 0},
        "tokens_per_second": {"decode": 31.4, "prefill": 412.0},
        "state": "ready",
        "message": None,
        "nodes": nodes,
    }
