"""Clients with bad manners: none of them may cost anything or disturb others."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from dllama_gpu.api import server as server_module
from tests.unit.api.conftest import Running, Serve, eventually


def chat_request(**fields: object) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        part = connection.recv(65536)
        if not part:
            break
        received += part
    return received


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request_at_once(api: Running, stream: bool):
    api.engine.script.never_ends = True
    connection = api.connect()
    connection.sendall(chat_request(stream=stream, n=2))
    if stream:
        read_until(connection, b"friend")
    assert eventually(lambda: len(api.engine.tickets) == 2)
    assert not api.engine.tickets[0].cancelled.is_set()
    connection.close()
    assert eventually(lambda: all(ticket.cancelled.is_set() for ticket in api.engine.tickets))
    assert eventually(lambda: len(api.service.active) == 0)


def test_half_a_request_harms_nobody(api: Running):
    connections = []
    whole = chat_request()
    for length in (1, 10, whole.index(b"\r\n\r\n") + 2, len(whole) - 1):
        connection = api.connect()
        connection.sendall(whole[:length])
        connections.append(connection)
    assert api.chat().status_code == 200
    for connection in connections:
        connection.close()
    assert api.chat().status_code == 200
    assert len(api.engine.requests) == 2


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n{}",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}{}{}",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\xfe\r\n\r\n",
    ],
)
def test_garbage_is_refused_and_others_are_served(api: Running, request_bytes: bytes):
    with api.connect() as connection:
        connection.sendall(request_bytes)
        connection.settimeout(20)
        answer = read_until(connection, b"\r\n")
    assert answer.split(b" ")[1][:1] == b"4"
    assert api.chat().status_code == 200


def test_a_chunked_body_is_read(api: Running):
    def parts():
        yield b'{"messages": [{"role": "user", '
        yield b'"content": "Hi"}]}'

    headers = {"Content-Type": "application/json"}
    assert api.client.post("/v1/chat/completions", content=parts(), headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_refused_without_being_kept(serve: Serve):
    with serve(max_body_bytes=1000) as api:
        headers = {"Content-Type": "application/json"}
        # The last one is still being sent when it is refused, and its sender must learn why all the same.
        for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600]), b"x" * (20 << 20)):
            response = api.client.post("/v1/completions", content=content, headers=headers)
            assert response.status_code == 413
            assert "1000 bytes" in response.json()["error"]["message"]
        assert api.text().status_code == 200


def test_a_body_that_does_not_come_ends_in_408(serve: Serve):
    with serve(body_seconds=1.0) as api, api.connect() as connection:
        connection.sendall(chat_request()[:-5])
        assert b"408" in read_until(connection, b"\r\n")
        assert api.text().status_code == 200


def test_a_head_that_does_not_come_to_an_end_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, "_HEADER_SECONDS", 1.0)
    with serve() as api:
        with api.connect() as silent, api.connect() as slow, api.connect() as second:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost:")
            second.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            read_until(second, b"}")
            second.sendall(b"GET /hea")
            for connection in (silent, slow, second):
                assert connection.recv(100) == b""
        assert api.chat().status_code == 200


def test_a_client_that_reads_slowly_holds_up_nobody(api: Running):
    api.engine.script.answer = "word " * 3000
    with api.connect() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.sendall(chat_request(stream=True))
        assert api.chat().status_code == 200
        received = read_until(slow, b"[DONE]")
        assert received.count(b'"content":" word"') == 2999


def test_a_client_that_takes_nothing_is_given_up(serve: Serve):
    with serve(write_seconds=0.3) as api:
        api.engine.script.answer = "word " * 40_000
        with api.connect() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(chat_request(stream=True))
            assert eventually(lambda: bool(api.engine.tickets))
            assert eventually(lambda: len(api.service.active) == 0, 30)


def test_without_a_key_only_the_page_and_health_are_open(serve: Serve):
    with serve(api_keys=("one", "two")) as api:
        for header in (None, "Bearer", "Bearer wrong", "Basic one", "Bearer one two"):
            headers = {} if header is None else {"Authorization": header}
            for method, path in (("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/api/cluster")):
                response = api.client.request(method, path, headers=headers)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        large = api.client.post("/v1/completions", content=b"x" * (20 << 20))
        assert large.status_code == 401
        assert api.client.get("/health").status_code == 200
        for key in ("one", "two"):
            assert api.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_pages_of_other_sites_may_ask_only_if_the_operator_allows_it(serve: Serve, api: Running):
    asks = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,authorization",
    }
    refused = api.client.options("/v1/chat/completions", headers=asks)
    assert "access-control-allow-origin" not in refused.headers
    with serve(cors_origins=("https://example.org",), api_keys=("k",)) as open_api:
        allowed = open_api.client.options("/v1/chat/completions", headers=asks)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        # A page must be able to read why it was refused.
        refused = open_api.client.get("/v1/models", headers={"Origin": "https://example.org"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://example.org")
        other = open_api.client.options("/v1/chat/completions", headers={**asks, "Origin": "https://evil.example"})
        assert other.headers.get("access-control-allow-origin") != "https://evil.example"


@pytest.mark.parametrize("stream", [False, True])
def test_when_the_server_ends_a_running_answer_ends_with_an_error(serve: Serve, stream: bool):
    with serve() as api:
        api.engine.script.never_ends = True
        received: list[bytes] = []
        connection = api.connect()
        connection.sendall(chat_request(stream=stream))
        assert eventually(lambda: bool(api.engine.tickets))
        reader = threading.Thread(target=lambda: received.append(read_until(connection, b"shutting_down")))
        reader.start()
        api.server.should_exit = True
        reader.join(20)
        assert b"shutting_down" in received[0]
        assert api.engine.tickets[0].cancelled.is_set()


def test_when_the_server_ends_running_answers_may_come_to_their_end_and_nothing_new_begins(serve: Serve):
    with serve(drain_seconds=20) as api:
        api.engine.script.never_ends = True
        connection = api.connect()
        connection.sendall(chat_request(stream=True))
        read_until(connection, b"friend")
        api.server.should_exit = True
        assert eventually(lambda: api.service.active.closing is not None)
        refused = api.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert api.client.get("/health").status_code == 503
        assert not api.engine.tickets[0].cancelled.is_set()
        started = time.monotonic()
        connection.close()  # now nobody waits for anything
    assert time.monotonic() - started < 15


HOSTS = {
    "evil.example": 403,
    "evil.example:9990": 403,
    "127.0.0.1.evil.example": 403,
    "localhost:9990": 200,
    "[::1]:9990": 200,
    "192.168.1.5": 200,
    "desk": 200,
    "desk.local.": 200,
    "Llama.Example.org": 200,
}


def test_a_foreign_sites_name_is_refused_where_no_key_protects(serve: Serve):
    with serve(host_names=("llama.example.org",)) as api:
        found = {host: api.client.get("/v1/models", headers={"Host": host}).status_code for host in HOSTS}
        assert found == HOSTS
    with serve(api_keys=("k",)) as api:
        headers = {"Host": "evil.example", "Authorization": "Bearer k"}
        assert api.client.get("/v1/models", headers=headers).status_code == 200


def test_the_page_is_served_and_asked_for_anew_only_if_it_changed(api: Running):
    page = api.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    unchanged = api.client.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    for path in ("/static/nothing.js", "/static/../app.py", "/static/%2e%2e/app.py", "/static/"):
        assert api.client.get(path).status_code == 404
