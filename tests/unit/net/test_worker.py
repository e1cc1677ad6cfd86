"""A worker that listens in this process, and strangers who talk to it."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import Buffer
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net.addresses import Address
from dllama_gpu.net.channel import Channel, PeerGoneError, RemoteFailureError
from dllama_gpu.net.graph_messages import DIALECT
from dllama_gpu.net.handshake import MAGIC
from dllama_gpu.net.links import open_channel, open_peer
from dllama_gpu.net.messages import (
    Bye,
    Connected,
    FetchLogits,
    FetchStatistics,
    FetchTrace,
    GraphMessage,
    Message,
    NodeReport,
    PeerTable,
    Ping,
    Pong,
    ProbeHello,
    RootHello,
    SliceHashes,
    StartTrace,
    StepBatch,
    StepMessage,
    Welcome,
    encode,
)
from dllama_gpu.net.session import Node
from dllama_gpu.net.store import SliceStore
from dllama_gpu.net.worker import WorkerServer
from tests.support.models import small_spec
from tests.support.worker_process import wait_until

KEY = b"a key that is long enough"
TOKEN = b"t" * 32


class Listening:
    """A worker in a thread of this process."""

    def __init__(self, key: bytes | None) -> None:
        self.log: list[str] = []
        node = Node(lambda: CpuDevice(1), lambda: SliceStore(None), lambda: 1 << 30, key=key, log=self.log.append)
        self.server = WorkerServer(node, "127.0.0.1", 0)
        self.key = key
        self.address = self.server.addresses[0]
        self._thread = threading.Thread(target=self.server.serve)
        self._thread.start()

    def raw(self) -> socket.socket:
        return socket.create_connection((self.address.host, self.address.port), timeout=5)

    def root(self, token: bytes = TOKEN) -> Channel:
        channel = open_channel(self.address, "the worker", self.key, 5.0)
        channel.send(RootHello("0.1.0", token, ()))
        return channel

    def serves(self) -> bool:
        """Whether a root finds it ready to work."""
        root = self.root()
        try:
            return isinstance(root.receive(NodeReport), NodeReport)
        finally:
            root.close()

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


@contextmanager
def listening(key: bytes | None = None) -> Iterator[Listening]:
    worker = Listening(key)
    try:
        yield worker
    finally:
        worker.stop()


@pytest.fixture
def worker() -> Iterator[Listening]:
    with listening() as one:
        yield one


GREETING = struct.pack(f"<{len(MAGIC)}sHHB16s8s32s", MAGIC, 1, 1, 0, b"0.1.0", DIALECT, b"n" * 32)
GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "a zero byte": b"\0",
    "many zero bytes": bytes(100_000),
    "a line end": b"\r\n",
    "http get": b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n",
    "http post": b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "smtp": b"EHLO mail.example\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "json": b'{"jsonrpc": "2.0"}\n',
    "pickle": b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
    "half the magic": MAGIC[:6],
    "the magic alone": MAGIC,
    "half a greeting": GREETING[:30],
    "a greeting alone": GREETING,
    "version 0": GREETING[:14] + b"\0\0\0\0" + GREETING[18:],
    "version 65535": GREETING[:14] + b"\xff\xff\xff\xff" + GREETING[18:],
    "an impossible range of versions": GREETING[:14] + b"\xff\xff\0\0" + GREETING[18:],
    "a claimed key": GREETING[:18] + b"\1" + GREETING[19:],
    "a wrong proof": GREETING[:18] + b"\1" + GREETING[19:] + bytes(32),
    "a huge frame": GREETING + struct.pack("<IQB", 2**32 - 1, 0, 0),
    "an empty frame": GREETING + struct.pack("<IQB", 0, 0, 0),
    "half a frame": GREETING + struct.pack("<IQB", 100, 0, 0) + bytes(50),
    "a raw frame": GREETING + struct.pack("<IQB", 4, 0, 1) + b"abcd",
    "an unknown kind of frame": GREETING + struct.pack("<IQB", 4, 0, 7) + b"abcd",
    "a frame out of turn": GREETING + struct.pack("<IQB", 4, 9, 0) + b"abcd",
    "no messagepack": GREETING + struct.pack("<IQB", 4, 0, 0) + b"\xc1\xc1\xc1\xc1",
    "nested arrays": GREETING + struct.pack("<IQB", 8000, 0, 0) + b"\x91" * 8000,
    "an unexpected message": GREETING + struct.pack("<IQB", len(encode(Bye())), 0, 0) + encode(Bye()),
    "random bytes": random.Random(1).randbytes(10_000),
    "a greeting and random bytes": GREETING + random.Random(2).randbytes(10_000),
}


@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
def test_a_worker_survives_every_kind_of_garbage(key: bytes | None) -> None:
    with listening(key) as worker:
        for data in GARBAGE.values():
            with worker.raw() as stranger:
                try:
                    stranger.sendall(data)
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
                except OSError:
                    continue  # the worker hung up first
        assert worker.serves()
        assert not any("should not" in line for line in worker.log)


def test_a_stranger_is_named_in_the_log(worker: Listening) -> None:
    with worker.raw() as stranger:
        stranger.sendall(GARBAGE["http get"])
        wait_until(lambda: any("speaks HTTP" in line for line in worker.log), "the sentence")


def test_strangers_who_say_nothing_keep_nobody_out(worker: Listening) -> None:
    silent = [worker.raw() for _ in range(20)]
    assert worker.serves()
    for stranger in silent:
        stranger.close()


def test_a_second_root_is_told_that_the_worker_is_busy(worker: Listening) -> None:
    first = worker.root()
    first.receive(NodeReport)
    with pytest.raises(RemoteFailureError, match="busy: it works for the root at 127"):
        worker.root(b"another root's token of 32 bytes").receive(NodeReport)
    with pytest.raises(RemoteFailureError, match="takes part already, under another name or address"):
        worker.root().receive(NodeReport)
    first.send(Ping(b"", 3))
    assert first.receive(Pong) == Pong(bytes(3))
    first.close()
    assert worker.serves()


def test_a_report_says_what_the_node_can(worker: Listening) -> None:
    root = open_channel(worker.address, "the worker", None, 5.0)
    root.send(RootHello("0.1.0", TOKEN, (FloatType.Q40,)))
    report = root.receive(NodeReport)
    assert report.memory == 1 << 30
    assert report.speeds[FloatType.Q40].bytes_per_second > 0
    assert report.device.startswith("cpu")
    root.close()


def test_nobody_joins_a_session_without_its_token(worker: Listening) -> None:
    for token in (TOKEN, b"x" * 32, b""):
        with pytest.raises(RemoteFailureError, match="no session with this token"):
            open_peer(worker.address, "the worker", None, token, 0, 5.0)
    root = worker.root()
    root.receive(NodeReport)
    with pytest.raises(RemoteFailureError, match="no session with this token"):
        open_peer(worker.address, "the worker", None, b"x" * 32, 0, 5.0)
    open_peer(worker.address, "the worker", None, TOKEN, 0, 5.0).close()
    root.close()


def test_a_way_may_take_longer_to_measure_than_a_stranger_has(
    worker: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dllama_gpu.net.worker._STRANGER_SECONDS", 0.5)
    root = worker.root()
    root.receive(NodeReport)
    other = open_channel(worker.address, "the worker", worker.key, 5.0)
    other.send(ProbeHello(TOKEN))
    other.receive(Welcome)
    time.sleep(0.8)
    other.send(Ping(b"", 3))
    assert len(other.receive(Pong).payload) == 3
    other.close()
    root.close()


def test_a_place_in_a_session_is_taken_once(worker: Listening) -> None:
    root = worker.root()
    root.receive(NodeReport)
    first = open_peer(worker.address, "the worker", None, TOKEN, 0, 5.0)
    second = open_peer(worker.address, "the worker", None, TOKEN, 0, 5.0)
    with pytest.raises(PeerGoneError):
        second.receive(Bye)
    for channel in (first, second, root):
        channel.close()


def graph_of(**changes: object) -> GraphMessage:
    message = GraphMessage("model.m", small_spec(), FloatType.F32, (), (), (), (), 1, 1, 1, None)
    return msgspec.structs.replace(message, **changes)


def connected(root: Channel, worker: Listening) -> Channel:
    """Makes the worker node 1 of two."""
    root.send(PeerTable(1, (None, ("127.0.0.1", 1)), 2.0, None))
    return open_peer(worker.address, "the worker", None, TOKEN, 0, 5.0)


BAD_ORDERS: dict[str, tuple[Callable[[], Message], str]] = {
    "a step before the weights": (lambda: StepBatch(b"", b"", b"", b"", b""), "before the weights were loaded"),
    "statistics before there are any": (FetchStatistics, "before the nodes were connected"),
    "logits before the weights": (lambda: FetchLogits(1), "which are not there"),
    "a graph before the nodes are connected": (graph_of, "before the nodes were connected"),
    "a trace before the weights": (StartTrace, "before the weights were loaded"),
    "a trace that was not started": (lambda: FetchTrace(0), "a trace was asked for that is not there"),
    "hashes without a graph": (lambda: SliceHashes(()), "SliceHashes was sent where"),
    "a rank outside the table": (lambda: PeerTable(5, (None, ("a", 1)), 1.0, None), "makes no sense"),
    "a table without the worker": (lambda: PeerTable(0, (None,), 1.0, None), "makes no sense"),
    "no time for exchanges": (lambda: PeerTable(1, (None, ("a", 1)), 0.0, None), "makes no sense"),
}


@pytest.mark.parametrize("what", BAD_ORDERS)
def test_orders_that_make_no_sense_end_the_session_with_a_sentence(worker: Listening, what: str) -> None:
    make, sentence = BAD_ORDERS[what]
    root = worker.root()
    root.receive(NodeReport)
    root.send(make())
    with pytest.raises(RemoteFailureError, match=sentence):
        root.receive(Pong)
    root.close()
    assert worker.serves()


BAD_GRAPHS: dict[str, tuple[dict[str, object], str]] = {
    "an unknown op": ({"steps": (StepMessage("Exec", msgspec.Raw(b"\x80")),)}, "unknown kind Exec"),
    "no positions": ({"seq_len": 0}, "seq_len = 0"),
    "too much memory": (
        {"buffers": (Buffer("x", 1 << 30),)},
        "out of memory",
    ),
}


@pytest.mark.parametrize("what", BAD_GRAPHS)
def test_graphs_that_cannot_be_run_end_the_session_with_a_sentence(worker: Listening, what: str) -> None:
    changes, sentence = BAD_GRAPHS[what]
    root = worker.root()
    root.receive(NodeReport)
    peer = connected(root, worker)
    root.receive(Connected)
    root.send(graph_of(**changes))
    with pytest.raises(RemoteFailureError, match=sentence):
        root.receive(Pong)
    for channel in (peer, root):
        channel.close()
    assert worker.serves()


def test_a_node_that_does_not_come_is_named(worker: Listening) -> None:
    root = worker.root()
    root.receive(NodeReport)
    root.send(PeerTable(2, (None, ("127.0.0.1", 1), ("127.0.0.1", 2)), 0.1, None))
    with pytest.raises(RemoteFailureError, match=r"node 0, 1 did not connect within 0\.1 seconds"):
        root.receive(Pong)
    root.close()


def test_a_node_that_cannot_be_reached_is_named(worker: Listening) -> None:
    root = worker.root()
    root.receive(NodeReport)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        root.send(PeerTable(1, (None, ("127.0.0.1", 1), ("127.0.0.1", port)), 2.0, None))
        with pytest.raises(RemoteFailureError, match=rf"no connection to 127\.0\.0\.1:{port}: nothing listens"):
            root.receive(Pong)
    root.close()


def test_a_worker_with_a_key_refuses_those_without_it() -> None:
    with listening(KEY) as worker:
        for key in (None, b"another key of some length"):
            with pytest.raises(DllamaError, match=r"has a key and this node has none|wrong key"):
                open_channel(worker.address, "the worker", key, 5.0)
        assert worker.serves()


def test_a_root_that_is_gone_without_a_word_frees_the_worker(worker: Listening) -> None:
    root = worker.root()
    root.receive(NodeReport)
    root.close()
    wait_until(lambda: any("session ended" in line for line in worker.log), "the end of the session")
    assert worker.serves()


def test_a_worker_that_is_stopped_ends_its_session() -> None:
    with listening() as worker:
        root = worker.root()
        root.receive(NodeReport)
    with pytest.raises(DllamaError):
        root.receive(Pong)
    root.close()
    with pytest.raises(DllamaError, match="nothing listens there"):
        open_channel(Address("127.0.0.1", worker.address.port), "the worker", None, 2.0)
