"""Which way an all-reduce takes through the network: a question of its size, the number of nodes and their links."""

from __future__ import annotations

from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.model.float_type import FloatType

SPAN_MULTIPLE = 32  # columns; a span holds whole blocks of quantized types
_FRAME_BYTES = 28 + 66  # our header; Ethernet, IP and TCP around a small frame

# A wired home network: 1 Gb/s, and what a small frame takes from program to program.
TYPICAL_LATENCY_SECONDS = 150e-6
TYPICAL_BYTES_PER_SECOND = 118e6


def choose(
    n_rows: int, width: int, n_nodes: int, wire: FloatType, latency_seconds: float, bytes_per_second: float
) -> Algorithm:
    """The faster algorithm for rows (n_rows, width); see `predict_seconds`. Equal ones: the one with fewer hops.

    All nodes must choose alike, so all must be given the same link.
    """
    return min(
        Algorithm,
        key=lambda algorithm: predict_seconds(
            algorithm, n_rows, width, n_nodes, wire, latency_seconds, bytes_per_second
        ),
    )


def choose_algorithm(n_rows: int, width: int, n_nodes: int, wire: FloatType) -> Algorithm:
    """The choice for a wired home network (1 Gb/s), which every node makes alike without being told of any link."""
    return choose(n_rows, width, n_nodes, wire, TYPICAL_LATENCY_SECONDS, TYPICAL_BYTES_PER_SECOND)


def predict_seconds(
    algorithm: Algorithm,
    n_rows: int,
    width: int,
    n_nodes: int,
    wire: FloatType,
    latency_seconds: float,
    bytes_per_second: float,
) -> float:
    """How long an all-reduce of rows (n_rows, width) takes, all nodes beginning together.

    `latency_seconds` L is one way of a small frame; `bytes_per_second` W what one node can send to all others together.
    With B the bytes of all rows in `wire` format, S those of the widest span, H those of a frame's headers and n nodes:

    * direct: L + (n - 1)·(B + H) / W
    * reduce-scatter + all-gather: 2·L + ((n - 1)/n·B + (n - 1)·S + 2·(n - 1)·H) / W, which for even spans (S = B/n)
      is 2·L + 2·(n - 1)·(B/n + H) / W

    Source: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH" (2005).
    """
    n_bytes = n_rows * _row_bytes(wire, width)
    others = n_nodes - 1
    if algorithm is Algorithm.DIRECT:
        return latency_seconds + others * (n_bytes + _FRAME_BYTES) / bytes_per_second
    n_blocks = -(-width // SPAN_MULTIPLE)
    widest = min(width, -(-n_blocks // n_nodes) * SPAN_MULTIPLE)
    sent = others * (n_bytes / n_nodes + n_rows * _row_bytes(wire, widest) + 2 * _FRAME_BYTES)
    return 2 * latency_seconds + sent / bytes_per_second


def _row_bytes(wire: FloatType, width: int) -> int:
    """Bytes of `width` numbers, rounded up to whole blocks."""
    return -(-width // wire.block_size) * wire.block_bytes
