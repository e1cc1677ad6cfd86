"""One node of a measurement of exchanges: `python -m benchmarks.exchange_node RANK ADDRESSES JOB`.

ADDRESSES are host:port of all nodes, separated by commas; every node dials those of higher rank. JOB is an
`ExchangeJob` as JSON; an `ExchangeTimes` comes out.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.measure import to_json
from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net.exchange import max_candidate_bytes
from dllama_gpu.net.mesh import Mesh
from launcher.guard import guarded

_PATIENCE_SECONDS = 30.0
_WARM_UP = 20
_N_CANDIDATES = 64


@dataclass(frozen=True)
class ExchangeJob:
    """What is exchanged, and how often."""

    width: int
    n_layers: int
    n_rows: int
    wire: str
    algorithm: str
    """A value of `Algorithm`."""
    repetitions: int
    whole_token: bool
    """All exchanges of a token in place of one all-reduce: the embedded row to all, two all-reduces a layer, the best
    candidates to rank 0."""


@dataclass(frozen=True)
class ExchangeTimes:
    """Seconds of every repetition, and the bytes that this node sent in each."""

    seconds: list[float]
    bytes_sent: float


def main() -> int:
    """Measures."""
    rank, addresses, job = int(sys.argv[1]), sys.argv[2].split(","), ExchangeJob(**json.loads(sys.argv[3]))
    mesh = Mesh(rank, _connections(rank, addresses), timeout=_PATIENCE_SECONDS)
    exchange = _exchange(mesh, job)
    for _ in range(_WARM_UP):
        exchange()
    sent, seconds = mesh.stats().bytes_sent, []
    for _ in range(job.repetitions):
        began = time.perf_counter()
        exchange()
        seconds.append(time.perf_counter() - began)
    print(to_json(ExchangeTimes(seconds, (mesh.stats().bytes_sent - sent) / job.repetitions)))
    mesh.close()
    return 0


def _exchange(mesh: Mesh, job: ExchangeJob) -> Callable[[], None]:
    own = np.random.default_rng(mesh.rank).standard_normal((job.n_rows, job.width), np.float32)
    rows = own.copy()
    wire, algorithm = FloatType(job.wire), Algorithm(job.algorithm)
    candidates = bytes(max_candidate_bytes(1, _N_CANDIDATES))

    def all_reduce() -> None:
        np.copyto(rows, own)  # sums of sums would grow beyond all numbers
        mesh.all_reduce(rows, contributes=True, wire=wire, algorithm=algorithm)

    def token() -> None:
        mesh.broadcast(rows)
        for _ in range(2 * job.n_layers):
            all_reduce()
        mesh.gather(candidates, len(candidates))

    return token if job.whole_token else all_reduce


def _connections(rank: int, addresses: list[str]) -> dict[int, socket.socket]:
    endpoints = [(host, int(port)) for host, port in (address.rsplit(":", 1) for address in addresses)]
    peers: dict[int, socket.socket] = {}
    with socket.create_server(endpoints[rank]) as listener:
        for other in range(rank + 1, len(endpoints)):
            peers[other] = _dial(endpoints[other])
            peers[other].sendall(bytes([rank]))
        while len(peers) < len(endpoints) - 1:
            connection, _ = listener.accept()
            peers[connection.recv(1)[0]] = connection
    return peers


def _dial(endpoint: tuple[str, int]) -> socket.socket:
    """A connection to a node that may still be starting."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return socket.create_connection(endpoint, timeout=_PATIENCE_SECONDS)
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens at {endpoint}")


if __name__ == "__main__":
    sys.exit(guarded(main))
