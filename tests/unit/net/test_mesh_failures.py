"""Whatever a peer does instead of its part, the exchange ends with an error that names it."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net.mesh import Mesh, PeerLostError
from tests.support.mesh import (
    BROADCAST,
    F16,
    GATHER,
    PARTIAL_SPAN,
    frame,
    mesh_and_socket,
    meshes,
    on_all,
    tcp_pair,
)

KEY = b"a shared secret"
ONES = np.ones(32, "<f4").tobytes()

# Meshes here have a deadline of a minute: an error that came by it and not at once would run into this.
pytestmark = pytest.mark.timeout(20)


def add_up(mesh: Mesh, shape: tuple[int, int] = (1, 32), algorithm: Algorithm = Algorithm.DIRECT) -> list[float]:
    rows = np.full(shape, 2, np.float32)
    mesh.all_reduce(rows, contributes=True, wire=FloatType.F32, algorithm=algorithm)
    return rows[0].tolist()


def test_a_hand_made_frame_is_understood() -> None:
    """Otherwise the refusals below would say nothing."""
    for key in (None, KEY):
        with mesh_and_socket(key=key) as (mesh, peer):
            for sequence in (0, 2, 4):
                peer.sendall(frame(ONES, sequence=sequence, key=key))
                assert add_up(mesh) == [3.0] * 32


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "authenticated"])
def test_frames_that_come_together_are_taken_one_by_one(key: bytes | None) -> None:
    """A peer may be one exchange ahead; its second frame is the longer or shorter one, or has no payload."""
    shapes = [(1, 32), (3, 64), (1, 32), (2, 32), (1, 32)]
    sent = [
        frame(
            b"" if number == 2 else ONES * (rows * columns // 32), sequence=2 * number, shape=(rows, columns), key=key
        )
        for number, (rows, columns) in enumerate(shapes)
    ]
    for end in (len(b"".join(sent)), len(sent[0]) + 5, len(sent[0] + sent[1]) + 28, len(sent[0] + sent[1]) + 40):
        with mesh_and_socket(key=key) as (mesh, peer):
            together = b"".join(sent)
            peer.sendall(together[:end])
            later = threading.Timer(0.05, peer.sendall, [together[end:]])
            later.start()
            sums = [add_up(mesh, shape)[0] for shape in shapes]
            later.join()
        assert sums == [3.0, 3.0, 2.0, 3.0, 3.0]


WRONG_FRAMES = {
    "garbage": (b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", "out of step: what it sent is no frame"),
    "wrong number of rows": (frame(ONES * 2, shape=(2, 32)), "out of step: .*2 x 32.*1 x 32"),
    "wrong width": (frame(ONES * 2, shape=(1, 64)), "out of step"),
    "wrong format": (frame(ONES[:64], wire=F16), "out of step: .*f16.*f32"),
    "other exchange": (frame(ONES, kind=BROADCAST), "out of step: .*broadcast.*partial sums"),
    "other algorithm": (frame(ONES, kind=PARTIAL_SPAN), "out of step"),
    "unknown kind and format": (frame(ONES, kind=77, wire=99), "out of step: .*unknown kind"),
    "other node's frame": (frame(ONES, sender=2), "out of step: .*from node 2"),
    "later frame": (frame(ONES, sequence=2), "out of step: frame 2 .* frame 0"),
    "too short": (frame(ONES[:-4]), "out of step: 124 bytes"),
    "too long": (frame(ONES, size=129), "frame too long"),
    "enormous": (frame(size=0xFFFFFFFF), "frame too long: 4294967295 bytes"),
    "authenticated without need": (frame(ONES, key=KEY), "wrong authentication: .*no key was given here"),
}


@pytest.mark.parametrize(("sent", "reason"), WRONG_FRAMES.values(), ids=WRONG_FRAMES)
def test_a_frame_that_is_not_due_is_refused(sent: bytes, reason: str) -> None:
    with mesh_and_socket() as (mesh, peer):
        peer.sendall(sent)
        with pytest.raises(PeerLostError, match=f"node 1: {reason}") as raised:
            add_up(mesh)
        assert raised.value.rank == 1
        # The stream's place is unknown from here on.
        with pytest.raises(PeerLostError, match=f"node 1: {reason}"):
            add_up(mesh)


def altered(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


FORGED_FRAMES = {
    "another key": frame(ONES, key=b"another secret"),
    "no key": frame(ONES),
    "altered payload": altered(frame(ONES, key=KEY), 40),
    "altered code": altered(frame(ONES, key=KEY), -1),
    "frame 1 as frame 0": altered(frame(ONES, sequence=1, key=KEY), 8),
}


@pytest.mark.parametrize("sent", FORGED_FRAMES.values(), ids=FORGED_FRAMES)
def test_a_frame_that_does_not_prove_the_key_is_refused(sent: bytes) -> None:
    with mesh_and_socket(key=KEY) as (mesh, peer):
        peer.sendall(sent)
        with pytest.raises(PeerLostError, match="node 1: wrong authentication"):
            add_up(mesh)


def test_a_repeated_frame_is_refused_with_and_without_key() -> None:
    for key in (None, KEY):
        with mesh_and_socket(key=key) as (mesh, peer):
            once = frame(ONES, key=key)
            peer.sendall(once + once)
            add_up(mesh)
            with pytest.raises(PeerLostError, match=r"out of step: frame 0 .* where frame 2"):
                add_up(mesh)


def test_a_frame_sent_back_is_refused() -> None:
    with mesh_and_socket(key=KEY) as (mesh, peer):
        reader = threading.Thread(target=lambda: peer.sendall(peer.recv(28 + 128 + 16, socket.MSG_WAITALL)))
        reader.start()
        with pytest.raises(PeerLostError, match=r"out of step: .*from node 0"):
            add_up(mesh)
        reader.join()


@pytest.mark.parametrize("n_bytes", [0, 1, 27, 28, 29, 155])
@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
def test_a_peer_that_closes_within_a_frame_is_named_at_once(pair: object, n_bytes: int) -> None:
    with mesh_and_socket(pair=pair) as (mesh, peer):  # type: ignore[arg-type]
        peer.sendall(frame(ONES)[:n_bytes])
        peer.close()
        with pytest.raises(PeerLostError, match=r"node 1: connection (closed|reset)") as raised:
            add_up(mesh)
        assert raised.value.rank == 1


def test_a_peer_that_closes_while_it_is_waited_for_is_named_at_once() -> None:
    with meshes(3) as nodes:
        timer = threading.Timer(0.2, nodes[2].close)
        timer.start()
        for mesh in nodes[:2]:
            with pytest.raises(PeerLostError, match=r"node 2: connection (closed|reset)"):
                add_up(mesh)
        timer.join()


def test_a_reset_connection_is_named_at_once() -> None:
    with mesh_and_socket(pair=tcp_pair) as (mesh, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(PeerLostError, match="node 1: connection reset"):
            add_up(mesh)


@pytest.mark.parametrize("n_bytes", [0, 5, 28, 100], ids=lambda n: f"after {n} bytes")
def test_a_silent_peer_is_given_up_at_the_deadline(n_bytes: int) -> None:
    with mesh_and_socket(timeout=0.3) as (mesh, peer):
        peer.sendall(frame(ONES)[:n_bytes])
        with pytest.raises(PeerLostError, match=r"node 1: no data for 0\.3 s"):
            add_up(mesh)


def test_a_peer_that_takes_no_data_is_given_up_at_the_deadline() -> None:
    with mesh_and_socket(timeout=0.3) as (mesh, _), pytest.raises(PeerLostError, match=r"node 1: no data for 0\.3 s"):
        mesh.broadcast(np.zeros((1024, 4096), np.float32))


def test_the_deadline_counts_from_the_last_byte() -> None:
    """A slow link takes longer in all than a peer may be silent."""

    def trickle(peer: socket.socket) -> None:
        for byte in frame(ONES):
            time.sleep(0.01)
            peer.sendall(bytes([byte]))

    with mesh_and_socket(timeout=1.0) as (mesh, peer):
        sender = threading.Thread(target=trickle, args=(peer,))
        sender.start()
        assert add_up(mesh) == [3.0] * 32
        sender.join()


def test_the_silent_one_of_several_peers_is_named() -> None:
    with meshes(4, timeout=0.4) as nodes:
        errors: list[int] = []

        def work(mesh: Mesh) -> None:
            if mesh.rank != 2:
                try:
                    add_up(mesh)
                except PeerLostError as error:
                    errors.append(error.rank)

        on_all(nodes, work)
    assert errors == [2, 2, 2]


def test_nodes_with_different_keys_refuse_each_other() -> None:
    first, second = socket.socketpair()
    nodes = [Mesh(0, {1: first}, timeout=60, key=b"one"), Mesh(1, {0: second}, timeout=60, key=b"two")]

    def work(mesh: Mesh) -> str:
        with pytest.raises(PeerLostError, match="wrong authentication") as raised:
            add_up(mesh)
        return str(raised.value)

    assert [message[:6] for message in on_all(nodes, work)] == ["node 1", "node 0"]
    for mesh in nodes:
        mesh.close()


def test_nodes_that_chose_different_algorithms_say_so() -> None:
    with meshes(2) as nodes:

        def work(mesh: Mesh) -> None:
            algorithm = list(Algorithm)[mesh.rank]
            with pytest.raises(PeerLostError, match=r"out of step|connection"):
                add_up(mesh, (1, 64), algorithm)

        on_all(nodes, work)


def test_a_skipped_exchange_is_noticed_although_shapes_agree() -> None:
    with meshes(2) as nodes:
        nodes[0].broadcast(np.zeros((1, 32), np.float32))
        with pytest.raises(PeerLostError, match=r"node 0: out of step: frame 0 .*broadcast"):
            add_up(nodes[1])


def test_a_gathered_payload_is_limited() -> None:
    with mesh_and_socket() as (mesh, peer):
        peer.sendall(frame(bytes(101), kind=GATHER, shape=(0, 0)))
        with pytest.raises(PeerLostError, match="node 1: frame too long: 101 bytes were sent where at most 100"):
            mesh.gather(b"", 100)


def test_an_empty_frame_is_no_broadcast_and_no_sum() -> None:
    first, second = socket.socketpair()
    mesh = Mesh(1, {0: first}, timeout=60)
    second.sendall(frame(kind=BROADCAST, sender=0))
    with pytest.raises(PeerLostError, match="node 0: out of step: it broadcast nothing"):
        mesh.broadcast(np.zeros((1, 32), np.float32))
    mesh.close()
    second.close()
    with mesh_and_socket() as (mesh, peer):
        peer.sendall(frame(kind=PARTIAL_SPAN, shape=(1, 64)) + frame(kind=3, sequence=1, shape=(1, 64)))
        with pytest.raises(PeerLostError, match="node 1: out of step: it sent no sums"):
            add_up(mesh, (1, 64), Algorithm.REDUCE_SCATTER_ALL_GATHER)


def test_stop_ends_an_exchange_of_another_thread() -> None:
    with mesh_and_socket() as (mesh, _):
        timer = threading.Timer(0.2, mesh.stop)
        timer.start()
        for _ in range(2):
            with pytest.raises(DllamaError, match="stopped"):
                add_up(mesh)
        timer.join()


def test_close_ends_an_exchange_of_another_thread_and_every_later_one() -> None:
    with mesh_and_socket() as (mesh, _):
        timer = threading.Timer(0.2, mesh.close)
        timer.start()
        with pytest.raises(DllamaError, match="stopped"):
            add_up(mesh)
        timer.join()
        with pytest.raises(DllamaError, match="closed"):
            add_up(mesh)
        mesh.close()


def test_control_c_ends_an_exchange() -> None:
    with mesh_and_socket() as (mesh, _):
        timer = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            add_up(mesh)
        timer.join()
        with pytest.raises(DllamaError, match="stopped"):
            add_up(mesh)


def test_signals_that_are_handled_do_not_disturb_an_exchange() -> None:
    seen: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        with mesh_and_socket() as (mesh, peer):
            signals = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
            answer = threading.Timer(0.5, peer.sendall, (frame(ONES),))
            signals.start()
            answer.start()
            assert add_up(mesh) == [3.0] * 32
            signals.join()
            answer.join()
    finally:
        signal.signal(signal.SIGINT, usual)
    assert seen == [signal.SIGINT]


@settings(max_examples=300, deadline=None)
@given(
    n_bytes=st.integers(0, len(frame(ONES, key=KEY))),
    changes=st.lists(st.tuples(st.integers(0, len(frame(ONES)) - 1), st.integers(0, 255)), max_size=3),
    noise=st.binary(max_size=200),
    key=st.sampled_from([None, KEY]),
)
def test_whatever_bytes_come_the_answer_is_a_sum_or_an_error(
    n_bytes: int, changes: list[tuple[int, int]], noise: bytes, key: bytes | None
) -> None:
    genuine = frame(ONES, key=key)
    sent = bytearray(genuine)
    for position, value in changes:
        sent[position] = value
    data = bytes(sent[:n_bytes]) + noise
    with mesh_and_socket(key=key) as (mesh, peer):
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        if data.startswith(genuine):
            assert add_up(mesh) == [3.0] * 32
        elif key is None and data.startswith(frame()):
            assert add_up(mesh) == [2.0] * 32
        elif key is None and data.startswith(genuine[:28]) and len(data) >= len(genuine):
            # Without a key nothing speaks against another payload.
            sent_rows = np.frombuffer(data[28 : len(genuine)], "<f4")
            np.testing.assert_array_equal(add_up(mesh), sent_rows + np.float32(2))
        else:
            with pytest.raises(PeerLostError, match="node 1: "):
                add_up(mesh)
