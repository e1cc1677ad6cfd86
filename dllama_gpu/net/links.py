"""Opening of connections between nodes: dial, handshake, first message; and what a link can do."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass

from dllama_gpu.net.addresses import Address, dial
from dllama_gpu.net.channel import DEFAULT_TIMEOUT, Channel
from dllama_gpu.net.handshake import greet
from dllama_gpu.net.messages import PeerHello, Ping, Pong, Welcome

_N_PINGS = 5
_BULK_BYTES = 1 << 20


@dataclass(frozen=True)
class Link:
    """What was measured: seconds there and back of a small message, bytes per second of a large one."""

    round_trip: float
    bytes_per_second: float


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


def mesh_key(key: bytes | None, token: bytes) -> bytes | None:
    """The key that authenticates a session's exchanges, None without a shared key."""
    return None if key is None else hmac.digest(key, b"dllama-gpu exchanges\0" + token, "sha256")


def measure_link(channel: Channel) -> Link:
    """Round trip and bandwidth of a connection whose other end answers Ping. Takes a moment. Raises DllamaError."""
    round_trip = min(_timed(channel, b"", 0) for _ in range(_N_PINGS))
    bulk = min(_timed(channel, bytes(_BULK_BYTES), _BULK_BYTES) for _ in range(2))
    # Both ways carry the bulk one after the other; what a small message takes is not the bandwidth's fault.
    return Link(round_trip, 2 * _BULK_BYTES / max(bulk - round_trip, 1e-6))


def _timed(channel: Channel, payload: bytes, reply: int) -> float:
    started = time.perf_counter()
    channel.send(Ping(payload, reply))
    channel.receive(Pong)
    return time.perf_counter() - started
