"""Opening of connections between nodes: dial, handshake, first message; and what a link can do."""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from functools import lru_cache

from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.graph.profile import Link
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net.addresses import Address, dial
from dllama_gpu.net.algorithm import choose, choose_algorithm
from dllama_gpu.net.channel import DEFAULT_TIMEOUT, Channel
from dllama_gpu.net.exchange import Choose
from dllama_gpu.net.handshake import greet
from dllama_gpu.net.messages import MAX_PING_BYTES, Bye, PeerHello, Ping, Pong, ProbeHello, Welcome

_FEWEST_PINGS, _MOST_PINGS = 10, 100
_PING_SECONDS = 0.15
_PING_BYTES = 1024  # about what a node sends another for one token
_BULK_BYTES = 1 << 20
_CLOCK_SECONDS = 1e-6


def open_channel(address: Address, name: str, key: bytes | None, timeout: float = DEFAULT_TIMEOUT) -> Channel:
    """A connection to a node, greeted. Raises DllamaError when it cannot be had."""
    connection = dial(address, timeout)
    try:
        return Channel(connection, name, greet(connection, name, key, dialled=True), timeout=timeout)
    except BaseException:
        connection.close()
        raise


def open_peer(
    address: Address, name: str, key: bytes | None, token: bytes, rank: int, timeout: float = DEFAULT_TIMEOUT
) -> Channel:
    """A connection for exchanges, as node `rank` of the session `token`; no frame follows the welcome.

    Raises DllamaError when the other node cannot be reached or does not know the session.
    """
    channel = open_channel(address, name, key, timeout)
    try:
        channel.send(PeerHello(token, rank))
        channel.receive(Welcome)
    except BaseException:
        channel.close()
        raise
    return channel


def chooser(link: Link | None) -> Choose:
    """How all nodes choose the way of an all-reduce: by the slowest measured link, without one for a usual network."""
    if link is None:
        return choose_algorithm

    @lru_cache(maxsize=64)  # a few shapes come again and again
    def choose_by_link(n_rows: int, width: int, n_nodes: int, wire: FloatType) -> Algorithm:
        latency = link.latency_seconds + link.jitter_seconds
        return choose(n_rows, width, n_nodes, wire, latency, link.bytes_per_second)

    return choose_by_link


def mesh_key(key: bytes | None, token: bytes) -> bytes | None:
    """The key that authenticates a session's exchanges, None without a shared key."""
    return None if key is None else hmac.digest(key, b"dllama-gpu exchanges\0" + token, "sha256")


def measure_link(channel: Channel) -> Link:
    """Latency and bandwidth of a connection whose other end answers Ping. Takes a moment. Raises DllamaError."""
    trips: list[float] = []
    began = time.perf_counter()
    while len(trips) < _FEWEST_PINGS or (len(trips) < _MOST_PINGS and time.perf_counter() - began < _PING_SECONDS):
        trips.append(_timed(channel, bytes(_PING_BYTES), _PING_BYTES))
    round_trip, jitter = trips_summary(trips)
    bulk = min(_timed(channel, bytes(_BULK_BYTES), _BULK_BYTES) for _ in range(2))
    # The bulk goes there and comes back, one after the other; what a small message takes is not the bandwidth's fault.
    return Link(round_trip / 2, 2 * _BULK_BYTES / max(bulk - round_trip, _CLOCK_SECONDS), jitter / 2)


def trips_summary(seconds: Sequence[float]) -> tuple[float, float]:
    """The shortest of several round trips, and how much longer the others take on average.

    The longest tenth counts no more than the longest below it: one pause of a system that does something else for a
    moment is no property of the link.
    """
    ordered = sorted(seconds)
    limit = ordered[max(0, len(ordered) - 1 - len(ordered) // 10)]
    return ordered[0], sum(min(one, limit) for one in ordered) / len(ordered) - ordered[0]


def answer_ping(channel: Channel, message: Ping) -> None:
    """The other end of `measure_link`."""
    channel.send(Pong(bytes(min(max(message.reply, 0), MAX_PING_BYTES))))


def probe(address: Address, name: str, key: bytes | None, token: bytes, timeout: float = DEFAULT_TIMEOUT) -> Link:
    """Measures the way to another node of the session `token`. Raises DllamaError."""
    channel = open_channel(address, name, key, timeout)
    try:
        channel.send(ProbeHello(token))
        channel.receive(Welcome)
        link = measure_link(channel)
        channel.send(Bye())
    finally:
        channel.close()
    return link


def answer_probe(channel: Channel) -> None:
    """The other end of `probe`. Raises DllamaError."""
    channel.send(Welcome())
    while isinstance(message := channel.receive(Ping, Bye), Ping):
        answer_ping(channel, message)


def _timed(channel: Channel, payload: bytes, reply: int) -> float:
    started = time.perf_counter()
    channel.send(Ping(payload, reply))
    channel.receive(Pong)
    return time.perf_counter() - started
