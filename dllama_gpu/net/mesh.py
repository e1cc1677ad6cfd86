"""Exchanges among nodes of which every two are connected; the bytes are moved by native code without the GIL."""

from __future__ import annotations

import contextlib
import hmac
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net import _native

Rows = npt.NDArray[np.float32]

MAX_NODES = _native.MAX_NODES

_WIRES = {
    FloatType.F32: _native.Wire.F32,
    FloatType.F16: _native.Wire.F16,
    FloatType.Q80: _native.Wire.Q80,
}
_ALGORITHMS = {
    Algorithm.DIRECT: _native.Algorithm.DIRECT,
    Algorithm.REDUCE_SCATTER_ALL_GATHER: _native.Algorithm.REDUCE_SCATTER_ALL_GATHER,
}
_REASONS = {
    _native.Reason.CLOSED: "connection closed",
    _native.Reason.RESET: "connection reset",
    _native.Reason.LOST: "connection lost",
    _native.Reason.OUT_OF_STEP: "out of step",
    _native.Reason.WRONG_AUTHENTICATION: "wrong authentication",
    _native.Reason.FRAME_TOO_LONG: "frame too long",
}


class PeerLostError(DllamaError):
    """An exchange failed because of node `rank`; the message says how."""

    def __init__(self, rank: int, sentence: str) -> None:
        super().__init__(sentence)
        self.rank = rank


@dataclass(frozen=True)
class PeerStats:
    """What the exchanges with one peer cost so far.

    `waiting_seconds` run from the start of an exchange to the first byte of the peer's frame, `receiving_seconds` from
    there to its last byte, `sending_seconds` from the start until the system has taken the frame. They overlap.
    """

    bytes_sent: int
    bytes_received: int
    waiting_seconds: float
    receiving_seconds: float
    sending_seconds: float


@dataclass(frozen=True)
class MeshStats:
    """What all exchanges cost so far.

    `seconds` were spent in exchanges, of these `waiting_seconds` until the last of the awaited peers began to send;
    the rest is moving, rounding and adding.
    """

    n_exchanges: int
    seconds: float
    waiting_seconds: float
    peers: Mapping[int, PeerStats]

    @property
    def bytes_sent(self) -> int:
        """To all peers."""
        return sum(peer.bytes_sent for peer in self.peers.values())

    @property
    def bytes_received(self) -> int:
        """From all peers."""
        return sum(peer.bytes_received for peer in self.peers.values())


class Mesh:
    """Node `rank` of 2 to 64 nodes, with a connected stream socket to each other node by its rank.

    The mesh owns the sockets from now on, from which everything that came before has been read. `timeout` bounds the
    seconds in which a peer that is waited for moves no byte. With `key` (any length, the same on all nodes, another one
    for every set of connections) every frame is authenticated and cannot be repeated or reordered.

    All nodes must call the same exchanges in the same order with the same shapes; a peer that does not is refused with
    PeerLostError. After any error the mesh is of no more use. Raises DllamaError when the ranks are not 2 to 64 nodes.
    """

    def __init__(
        self, rank: int, peers: Mapping[int, socket.socket], *, timeout: float = 10.0, key: bytes | None = None
    ) -> None:
        n_nodes = len(peers) + 1
        if not 2 <= n_nodes <= MAX_NODES:
            raise DllamaError(f"a cluster has 2 to {MAX_NODES} nodes, not {n_nodes}; name fewer --workers")
        if sorted([rank, *peers]) != list(range(n_nodes)):
            raise ValueError(f"node {rank} of {n_nodes} needs a connection to every other, not to {sorted(peers)}")
        self.rank = rank
        self.n_nodes = n_nodes
        self._timeout = timeout
        self._peers = dict(peers)
        self._lock = threading.Lock()
        self._closed = False
        for connection in self._peers.values():
            connection.setblocking(False)
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets = {
            peer: (connection.fileno(), None if key is None else (_key(key, rank, peer), _key(key, peer, rank)))
            for peer, connection in self._peers.items()
        }
        self._native = _native.Mesh(rank, sockets, timeout)

    def all_reduce(self, rows: Rows, *, contributes: bool, wire: FloatType, algorithm: Algorithm) -> None:
        """Replaces `rows` (n_rows, width) by the sum of the rows of all nodes that contribute, zeros if none does.

        Every node's rows, the own ones too, are rounded to `wire` (F32, F16 or Q80) and added in rank order in
        float32, so that all nodes get the same bits; REDUCE_SCATTER_ALL_GATHER rounds the sums again.
        Raises PeerLostError, and DllamaError when rows cannot cross the network as `wire`.
        """
        if wire not in _WIRES:
            raise DllamaError(f"nodes exchange f32, f16 or q80, not {wire.value}; change --buffer-float-type")
        width = rows.shape[1]
        if width % wire.block_size:
            raise DllamaError(
                f"{wire.value} needs rows of a multiple of {wire.block_size} numbers, and this model's have {width}; "
                "use --buffer-float-type f32 or f16"
            )
        with self._lock:
            self._check_open()
            failure = self._native.all_reduce(rows, contributes, _WIRES[wire], _ALGORITHMS[algorithm])
        self._raise(failure)

    def broadcast(self, rows: Rows) -> None:
        """Replaces `rows` (n_rows, width) by those of rank 0, unrounded. Raises PeerLostError."""
        with self._lock:
            self._check_open()
            failure = self._native.broadcast(rows)
        self._raise(failure)

    def gather(self, payload: bytes, max_bytes: int = 1 << 24) -> list[bytes] | None:
        """Brings every node's `payload` to rank 0, which gets all of them by rank; the other nodes get None.

        Raises PeerLostError, on rank 0 also when a peer sends more than `max_bytes`.
        """
        with self._lock:
            self._check_open()
            failure, payloads = self._native.gather(payload, max_bytes)
        self._raise(failure)
        return payloads if self.rank == 0 else None

    def stats(self) -> MeshStats:
        """What the exchanges cost so far; waits for the end of a running one."""
        with self._lock:
            totals, links = self._native.totals(), self._native.stats()
        peers = {
            rank: PeerStats(
                link.bytes_sent, link.bytes_received, link.waiting_seconds, link.receiving_seconds, link.sending_seconds
            )
            for rank, link in links.items()
        }
        return MeshStats(totals.n_exchanges, totals.seconds, totals.waiting_seconds, peers)

    def stop(self) -> None:
        """Makes a running exchange, and every later one, fail within 0.1 s. From any thread."""
        self._native.stop()

    def close(self) -> None:
        """Stops and closes all connections. From any thread, any number of times."""
        self.stop()
        with self._lock:
            self._closed = True
            for connection in self._peers.values():
                with contextlib.suppress(OSError):
                    connection.close()

    def _check_open(self) -> None:
        # A closed socket's number may belong to another file by now.
        if self._closed:
            raise DllamaError("the connections to the other nodes are closed")

    def _raise(self, failure: _native.Failure | None) -> None:
        if failure is None:
            return
        rank, reason, detail = failure
        if reason == _native.Reason.STOPPED:
            raise DllamaError("an exchange between the nodes was stopped before its end, so none can follow it")
        if reason == _native.Reason.TIMED_OUT:
            how = f"no data for {self._timeout:g} s"
        else:
            how = _REASONS[reason] + (f": {detail}" if detail else "")
        raise PeerLostError(rank, f"node {rank}: {how}")


def _key(key: bytes, sender: int, receiver: int) -> bytes:
    """The 16-byte key of one direction of one connection."""
    return hmac.digest(key, f"dllama-gpu frames from {sender} to {receiver}".encode(), "sha256")[:16]
