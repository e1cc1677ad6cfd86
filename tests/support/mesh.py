"""Meshes whose nodes are threads of one process, and a peer that sends whatever a test wants."""

from __future__ import annotations

import hmac
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from dllama_gpu.graph.batch import Batch, Program
from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net import _native
from dllama_gpu.net.exchange import Choose, MeshExchange
from dllama_gpu.net.mesh import Mesh

Pair = Callable[[], tuple[socket.socket, socket.socket]]
Result = TypeVar("Result")

PLAIN_MAGIC, AUTHENTICATED_MAGIC = 0x31504C44, 0x31414C44
PARTIAL, PARTIAL_SPAN, SUM_SPAN, BROADCAST, GATHER = range(1, 6)
F32, F16, Q80 = range(3)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = socket.create_connection(server.getsockname())
        return first, server.accept()[0]


@contextmanager
def meshes(
    n_nodes: int, *, timeout: float = 60.0, key: bytes | None = None, pair: Pair = socket.socketpair
) -> Iterator[list[Mesh]]:
    """All nodes of a mesh."""
    peers: list[dict[int, socket.socket]] = [{} for _ in range(n_nodes)]
    for low in range(n_nodes):
        for high in range(low + 1, n_nodes):
            peers[low][high], peers[high][low] = pair()
    nodes = [Mesh(rank, peers[rank], timeout=timeout, key=key) for rank in range(n_nodes)]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.close()


def on_all(nodes: Sequence[Mesh], work: Callable[[Mesh], Result]) -> list[Result]:
    """What `work` returns on every node, all at once."""
    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(work, nodes))


@contextmanager
def mesh_and_socket(
    *, timeout: float = 60.0, key: bytes | None = None, pair: Pair = socket.socketpair
) -> Iterator[tuple[Mesh, socket.socket]]:
    """Node 0 of two, and the socket in node 1's place."""
    ours, theirs = pair()
    mesh = Mesh(0, {1: ours}, timeout=timeout, key=key)
    try:
        yield mesh, theirs
    finally:
        mesh.close()
        theirs.close()


def frame(
    payload: bytes = b"",
    *,
    kind: int = PARTIAL,
    wire: int = F32,
    sender: int = 1,
    sequence: int = 0,
    shape: tuple[int, int] = (1, 32),
    size: int | None = None,
    key: bytes | None = None,
) -> bytes:
    """A frame as node `sender` sends it to node 0; `size` is what the header says of the payload."""
    magic = PLAIN_MAGIC if key is None else AUTHENTICATED_MAGIC
    header = struct.pack(
        "<IBBHQIII", magic, kind, wire, sender, sequence, *shape, len(payload) if size is None else size
    )
    if key is None:
        return header + payload
    direction = hmac.digest(key, f"dllama-gpu frames from {sender} to 0".encode(), "sha256")[:16]
    return header + payload + _native.siphash(direction, [header, payload])


class MeshCluster:
    """Runs a batch on all programs, the first being rank 0, each in a thread; like LocalCluster, but over sockets."""

    def __init__(
        self, nodes: Sequence[Mesh], programs: Sequence[Program], wire: FloatType, algorithm: Algorithm
    ) -> None:
        def always(n_rows: int, width: int, n_nodes: int, wire: FloatType) -> Algorithm:
            return algorithm

        choose: Choose = always
        self.programs = programs
        self._nodes = nodes
        self._exchanges = [MeshExchange(*pair, wire, choose) for pair in zip(nodes, programs, strict=True)]

    def run(self, batch: Batch) -> None:
        """Computes one step on every node."""
        on_all(self._nodes, lambda mesh: self.programs[mesh.rank].run(batch, self._exchanges[mesh.rank]))
