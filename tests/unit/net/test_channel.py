from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from dllama_gpu.net.channel import (
    RAW_FRAME_BYTES,
    Channel,
    ChannelError,
    PeerGoneError,
    RemoteFailureError,
    SessionKeys,
)
from dllama_gpu.net.messages import Bye, Connected, Failure, Loading, Ping, Ready, encode

KEYS = [None, (SessionKeys(b"a" * 32, b"b" * 32), SessionKeys(b"b" * 32, b"a" * 32))]
Ends = tuple[Channel, Channel]


@pytest.fixture(params=KEYS, ids=["plain", "authenticated"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    keys = request.param or (None, None)
    channels = (Channel(ours, "the worker", keys[0], timeout=0.2), Channel(theirs, "the root", keys[1], timeout=0.2))
    yield channels
    for channel in channels:
        channel.close()


def test_messages_arrive_in_order(ends: Ends) -> None:
    ends[0].send(Loading(1, 5))
    ends[0].send(Ready())
    assert ends[1].receive(Loading) == Loading(1, 5)
    assert ends[1].receive(Ready, Bye) == Ready()


def test_raw_bytes_arrive_between_messages(ends: Ends) -> None:
    ends[0].send(Ready())
    ends[0].send_raw(b"weights")
    ends[0].send(Bye())
    assert ends[1].receive(Ready) == Ready()
    target = bytearray(7)
    ends[1].receive_raw_into(memoryview(target))
    assert target == b"weights"
    assert ends[1].receive(Bye) == Bye()


def test_more_raw_bytes_than_are_due_are_refused(ends: Ends) -> None:
    ends[0].send_raw(b"weights")
    with pytest.raises(ChannelError, match="more than the 3 bytes"):
        ends[1].receive_raw_into(memoryview(bytearray(3)))


def test_a_message_out_of_turn_is_named(ends: Ends) -> None:
    ends[0].send(Ready())
    with pytest.raises(ChannelError, match="the root: Ready was sent where Connected or Bye was due"):
        ends[1].receive(Connected, Bye)


def test_a_raw_frame_is_no_message(ends: Ends) -> None:
    ends[0].send_raw(encode(Ready()))
    with pytest.raises(ChannelError, match="kind 1"):
        ends[1].receive(Ready)


def test_a_failure_is_told_in_the_words_of_the_other_end_without_its_control_characters(ends: Ends) -> None:
    ends[0].send(Failure("the disk\x1b[31m is full", 3))
    with pytest.raises(RemoteFailureError, match=r"the root: the disk\?\[31m is full") as caught:
        ends[1].receive(Ready)
    assert caught.value.lost_rank == 3


def test_silence_has_a_deadline(ends: Ends) -> None:
    with pytest.raises(PeerGoneError, match=r"the root: no answer for 0\.2 seconds"):
        ends[1].receive(Ready)


def test_waiting_ends_with_the_first_byte(ends: Ends) -> None:
    ends[0].connection.sendall(b"\x01")
    with pytest.raises(PeerGoneError, match="no answer"):
        ends[1].receive(Ready, wait=True)


def test_a_stranger_has_one_deadline_for_everything(ends: Ends) -> None:
    ends[1].timeout = 60.0
    ends[1].deadline = time.monotonic() + 0.05
    with pytest.raises(PeerGoneError):
        ends[1].receive(Ready, wait=True)


def test_a_closed_connection_is_told(ends: Ends) -> None:
    ends[0].close()
    with pytest.raises(PeerGoneError, match="the root: the connection was closed"):
        ends[1].receive(Ready)


def test_an_interrupted_channel_ends_at_once(ends: Ends) -> None:
    ends[1].interrupt()
    with pytest.raises(PeerGoneError):
        ends[1].receive(Ready, wait=True)


def test_who_takes_no_data_is_left(ends: Ends) -> None:
    with pytest.raises(PeerGoneError, match=r"took no data for 0\.2 seconds"):
        ends[0].send_raw(bytes(100 * RAW_FRAME_BYTES))


def test_a_huge_frame_is_refused_before_it_is_read(ends: Ends) -> None:
    ends[0].connection.sendall(struct.pack("<IQB", 2**32 - 1, 0, 0))
    with pytest.raises(ChannelError, match="4294967295 bytes was sent where"):
        ends[1].receive(Ready)


def test_limits_are_those_of_the_message_that_is_due(ends: Ends) -> None:
    ends[0].send(Ping(bytes(9000), 0))
    with pytest.raises(ChannelError, match="where 8192 are allowed"):
        ends[1].receive(Ready)


def authenticated() -> Ends:
    ours, theirs = socket.socketpair()
    assert KEYS[1] is not None
    return Channel(ours, "us", KEYS[1][0], timeout=0.2), Channel(theirs, "them", KEYS[1][1], timeout=0.2)


@pytest.mark.parametrize("at", [0, 5, 12, 13, 20, -1])
def test_a_changed_bit_is_noticed(at: int) -> None:
    ours, theirs = authenticated()
    recorded = record(ours, theirs)
    changed = bytearray(recorded)
    changed[at] ^= 1
    ours.connection.sendall(changed)
    with pytest.raises(ChannelError):
        theirs.receive(Ready)
    for end in (ours, theirs):
        end.close()


def record(ours: Channel, theirs: Channel) -> bytes:
    """The bytes of a message that does not arrive."""
    ours.send(Ready())
    return theirs.connection.recv(4096)


def test_a_repeated_frame_is_refused() -> None:
    ours, theirs = authenticated()
    recorded = record(ours, theirs)
    ours.connection.sendall(recorded + recorded)
    assert theirs.receive(Ready) == Ready()
    with pytest.raises(ChannelError, match="frame 0 of kind 0 came where frame 1 was due"):
        theirs.receive(Ready)


def test_a_frame_sent_back_is_refused() -> None:
    ours, theirs = authenticated()
    theirs.connection.sendall(record(ours, theirs))
    with pytest.raises(ChannelError, match="altered on the way"):
        ours.receive(Ready)
