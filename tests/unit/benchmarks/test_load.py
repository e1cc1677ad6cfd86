from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.load import Wish, ask, load, percentile
from dllama_gpu.errors import DllamaError


class Handler(BaseHTTPRequestHandler):
    """Streams the words of the prompt; refuses the prompt `no`."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["prompt"] == "no":
            self.send_error(400, "never")
            return
        self.send_response(200)
        self.end_headers()
        for word in body["prompt"].split():
            self.wfile.write(b"data: " + json.dumps({"choices": [{"text": word}]}).encode() + b"\n\n")
        if "stream_options" in body:
            usage = {"completion_tokens": 77}
            self.wfile.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_tokens_are_those_of_the_usage_and_pieces_where_there_is_none(port: int) -> None:
    assert ask(port, Wish("a b c", 9)).n_tokens == 3
    answer = ask(port, Wish("a b c", 9, (("stream_options", {"include_usage": True}),)))
    assert (answer.n_tokens, answer.text, len(answer.pieces)) == (77, "abc", 3)
    assert answer.asked <= answer.pieces[0] <= answer.pieces[-1]


def test_all_wishes_are_asked_for_once_in_their_order(port: int) -> None:
    result = load(port, [Wish(f"word{i} end", 9) for i in range(10)], n_users=3)
    assert [answer.text for answer in result.answers] == [f"word{i}end" for i in range(10)]
    assert result.tokens_per_second == pytest.approx(20 / result.seconds)


def test_a_refusal_ends_the_run_with_the_servers_words(port: int) -> None:
    with pytest.raises(DllamaError, match="answered 400"):
        load(port, [Wish("no", 9)], n_users=2)


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([5.0], 95) == 5.0
    assert percentile([0.0, 10.0], 95) == pytest.approx(9.5)
