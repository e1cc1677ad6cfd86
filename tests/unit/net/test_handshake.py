from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dllama_gpu.net.channel import SessionKeys
from dllama_gpu.net.handshake import MAGIC, HandshakeError, greet

KEY = b"a key that is long enough"
Pair = tuple[socket.socket, socket.socket]
Outcome = SessionKeys | HandshakeError | None


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def outcome(end: socket.socket, key: bytes | None, *, dialled: bool, versions: tuple[int, int] = (1, 1)) -> Outcome:
    try:
        return greet(end, "the other", key, dialled=dialled, timeout=2.0, versions=versions)
    except HandshakeError as error:
        end.close()
        return error


def meet(pair: Pair, dialling: bytes | None, listening: bytes | None) -> tuple[Outcome, Outcome]:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(outcome, pair[1], listening, dialled=False)
        return outcome(pair[0], dialling, dialled=True), other.result()


def test_nodes_with_the_same_key_get_matching_keys_for_each_direction(pair: Pair) -> None:
    ours, theirs = meet(pair, KEY, KEY)
    assert isinstance(ours, SessionKeys)
    assert isinstance(theirs, SessionKeys)
    assert (ours.send, ours.receive) == (theirs.receive, theirs.send)
    assert ours.send != ours.receive


def test_every_connection_has_keys_of_its_own(pair: Pair) -> None:
    first = meet(pair, KEY, KEY)[0]
    other = socket.socketpair()
    second = meet(other, KEY, KEY)[0]
    for end in other:
        end.close()
    assert isinstance(first, SessionKeys)
    assert isinstance(second, SessionKeys)
    assert first.send != second.send


def test_nodes_without_keys_meet_without_authentication(pair: Pair) -> None:
    assert meet(pair, None, None) == (None, None)


@pytest.mark.parametrize(
    ("dialling", "listening", "ours", "theirs"),
    [
        (KEY, KEY + b"!", "wrong key", "wrong key"),
        (None, KEY, "has a key and this node has none; give the same one here", "has no key"),
        (KEY, None, "has no key", "has a key and this node has none; start this one with it"),
    ],
    ids=["another key", "none at the root", "none at the worker"],
)
def test_nodes_with_different_keys_part_with_a_sentence_on_both_sides(
    pair: Pair, dialling: bytes | None, listening: bytes | None, ours: str, theirs: str
) -> None:
    for found, wanted in zip(meet(pair, dialling, listening), (ours, theirs), strict=True):
        assert isinstance(found, HandshakeError)
        assert wanted in str(found)


def test_releases_without_a_common_protocol_say_so_on_both_sides(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(outcome, pair[1], None, dialled=False, versions=(2, 3))
        ours = outcome(pair[0], None, dialled=True, versions=(1, 1))
        theirs = other.result()
    assert "speaks protocol 2 to 3, and this is" in str(ours)
    assert "speaks protocol 1, and this is" in str(theirs)
    assert "install the same release on both" in str(ours)


def test_releases_with_overlapping_protocols_meet(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(outcome, pair[1], None, dialled=False, versions=(1, 3))
        assert outcome(pair[0], None, dialled=True, versions=(0, 1)) is None
        assert other.result() is None


def test_nodes_whose_messages_differ_say_so_on_both_sides(pair: Pair) -> None:
    def meeting(end: socket.socket, dialled: bool, dialect: bytes) -> str:
        with pytest.raises(HandshakeError) as caught:
            greet(end, "the other", None, dialled=dialled, timeout=2.0, dialect=dialect)
        return str(caught.value)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(meeting, pair[1], False, b"changed.")
        said = [meeting(pair[0], True, b"original"), other.result()]
    for sentence in said:
        assert "the other runs another state of " in sentence
        assert "update both to the same release" in sentence


STRANGERS = {
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "begins with the bytes": b"\x00\xff\x00\xff random",
}


@pytest.mark.parametrize("what", STRANGERS)
@pytest.mark.parametrize("dialled", [True, False])
def test_another_program_is_recognized(pair: Pair, what: str, dialled: bool) -> None:
    pair[1].sendall(STRANGERS[what])
    with pytest.raises(HandshakeError, match=what):
        greet(pair[0], "10.0.0.9:80", None, dialled=dialled, timeout=2.0)


@pytest.mark.parametrize("data", [b"", MAGIC[:5]])
def test_a_stranger_who_falls_silent_is_left(pair: Pair, data: bytes) -> None:
    pair[1].sendall(data)
    with pytest.raises(HandshakeError, match="did not answer as a dllama-gpu node within"):
        greet(pair[0], "10.0.0.9:80", None, dialled=False, timeout=0.05)


def test_a_stranger_who_sends_a_byte_now_and_then_does_not_gain_time(pair: Pair) -> None:
    stop = threading.Event()

    def drip() -> None:
        for byte in MAGIC + bytes(100):
            if stop.wait(0.02):
                return
            pair[1].sendall(bytes([byte]))

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        with pytest.raises(HandshakeError, match=r"within 0\.2 seconds"):
            greet(pair[0], "10.0.0.9:80", None, dialled=False, timeout=0.2)
    finally:
        stop.set()
        dripping.join()


class Relay:
    """A man in the middle who may change the greeting of the dialling end; keeps what it said."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self.dialling, self._left = socket.socketpair()
        self._right, self.listening = socket.socketpair()
        self.heard = b""
        self._change = change
        self._threads = [
            threading.Thread(target=self._pump, args=(self._left, self._right, True), daemon=True),
            threading.Thread(target=self._pump, args=(self._right, self._left, False), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, forth: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if forth:
                    data = data if self.heard else self._change(data)
                    self.heard += data
                target.sendall(data)
        target.close()

    def close(self) -> None:
        for end in (self.dialling, self.listening):
            end.close()
        for thread in self._threads:
            thread.join(timeout=5)
        for end in (self._left, self._right):
            end.close()


def claim_no_key(data: bytes) -> bytes:
    greeting = bytearray(data)
    greeting[len(MAGIC) + 4] = 0
    return bytes(greeting)


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("change", [claim_no_key, flip_last_bit])
def test_whoever_changes_a_greeting_on_the_way_prevents_the_connection(change: Callable[[bytes], bytes]) -> None:
    relay = Relay(change)
    found = meet((relay.dialling, relay.listening), KEY, KEY)
    relay.close()
    assert any(isinstance(result, HandshakeError) for result in found)
    assert not isinstance(found[1], SessionKeys)


def test_a_recorded_handshake_does_not_open_a_second_connection() -> None:
    relay = Relay(lambda data: data)
    assert isinstance(meet((relay.dialling, relay.listening), KEY, KEY)[1], SessionKeys)
    relay.close()
    ours, theirs = socket.socketpair()
    ours.sendall(relay.heard)
    with pytest.raises(HandshakeError, match="wrong key"):
        greet(theirs, "the other", KEY, dialled=False, timeout=2.0)
    ours.close()
    theirs.close()


def test_a_reflected_proof_is_no_proof(pair: Pair) -> None:
    """A false worker that sends everything back to where it came from."""

    def reflect() -> None:
        greeting = pair[1].recv(4096)
        pair[1].sendall(greeting)
        pair[1].sendall(b"\x01" + pair[1].recv(4096))

    reflecting = threading.Thread(target=reflect)
    reflecting.start()
    with pytest.raises(HandshakeError, match="wrong key"):
        greet(pair[0], "the other", KEY, dialled=True, timeout=2.0)
    reflecting.join()


def test_a_release_name_of_another_node_cannot_move_the_cursor(pair: Pair) -> None:
    pair[1].sendall(struct.pack(f"<{len(MAGIC)}sHHB16s32s", MAGIC, 7, 7, 0, b"\x1b[2J\n", bytes(32)))
    with pytest.raises(HandshakeError) as caught:
        greet(pair[0], "the other", None, dialled=True, timeout=2.0)
    assert str(caught.value).isprintable()
