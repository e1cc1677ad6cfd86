"""What the planner must know of a cluster: how fast its nodes and links are, and what is asked of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import BufferType, CacheType
from dllama_gpu.model.float_type import FloatType

_SLOWEST, _FASTEST = 1.0, 1e18  # bytes or operations per second that a machine can have
_LONGEST = 3600.0  # seconds


@dataclass(frozen=True)
class NodeProfile:
    """One machine as measured or described. Raises DllamaError for a figure that no machine has."""

    name: str
    """For people, e.g. `pi4 (10.0.0.7:9999)`; different for every node."""
    bytes_per_second: float
    """Weights that its matmul kernels read while they decode one row."""
    flops_per_second: float
    """What its matmul kernels reach with many rows, a multiply-add being two operations."""
    memory_bytes: int
    """What weights, KV cache and activations may take together."""
    op_seconds: float
    """Cost of one graph op beside its arithmetic: threads meeting, a dispatch."""

    def __post_init__(self) -> None:
        for what, speed in (("bytes_per_second", self.bytes_per_second), ("flops_per_second", self.flops_per_second)):
            _require(_SLOWEST <= speed <= _FASTEST, f"{what} of node {self.name}", speed, "from 1 to 1e18")
        _require(self.memory_bytes >= 0, f"memory_bytes of node {self.name}", self.memory_bytes, "0 or more")
        _require(0 <= self.op_seconds <= _LONGEST, f"op_seconds of node {self.name}", self.op_seconds, "0 to 3600")


@dataclass(frozen=True)
class Link:
    """The way between two nodes, the same in both directions. Raises DllamaError for impossible figures."""

    latency_seconds: float
    """From the sending of a small message to its arrival at the best: half a round trip."""
    bytes_per_second: float
    jitter_seconds: float = 0.0
    """How much later a message comes on average; taken for the mean of an exponential distribution."""

    def __post_init__(self) -> None:
        _require(0 <= self.latency_seconds <= _LONGEST, "the latency of a link", self.latency_seconds, "0 to 3600 s")
        _require(0 <= self.jitter_seconds <= _LONGEST, "the jitter of a link", self.jitter_seconds, "0 to 3600 s")
        possible = _SLOWEST <= self.bytes_per_second <= _FASTEST
        _require(possible, "the bandwidth of a link", self.bytes_per_second, "from 1 to 1e18 bytes/s")

    @classmethod
    def worst_of(cls, links: Iterable[Link]) -> Link:
        """The worst figures of several."""
        latencies, bandwidths, jitters = zip(
            *((link.latency_seconds, link.bytes_per_second, link.jitter_seconds) for link in links), strict=True
        )
        return cls(max(latencies), min(bandwidths), max(jitters))


LinkBetween = Callable[[str, str], Link]
"""The link between two nodes, given by their names in any order."""


@dataclass(frozen=True)
class PlanOptions:
    """What the user chose; the meaning of the sizes is that of `GraphOptions`."""

    seq_len: int
    n_slots: int = 1
    max_rows: int = 128
    max_logit_rows: int | None = None
    buffer_type: BufferType = BufferType.Q80
    cache_type: CacheType = CacheType.F16
    wire: FloatType = FloatType.Q80
    """Number format of partial sums that cross the network."""
    ratio: tuple[float, ...] | None = None
    """Shares of the nodes by hand; None leaves them to the planner."""


def _require(condition: bool, what: str, value: float, wanted: str) -> None:
    if not condition or math.isnan(value):
        raise DllamaError(f"{what} must be {wanted}, not {value:g}")
