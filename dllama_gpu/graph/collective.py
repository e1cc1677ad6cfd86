"""What an exchange between all nodes moves over each link, and how long that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.profile import LinkBetween, NodeProfile
from dllama_gpu.model.float_type import FloatType

_BLOCK = 32

Traffic = npt.NDArray[np.float64]
"""Bytes that one node sends to another, (n_nodes, n_nodes): row the sender, column the receiver."""


class Algorithm(Enum):
    """How partial sums are added up."""

    DIRECT = "direct"
    """Every node sends its whole rows to every other: one hop, n−1 times the bytes."""
    REDUCE_SCATTER_ALL_GATHER = "reduce-scatter + all-gather"
    """Every node adds up one span of columns and sends the sums to the others: two hops, 2(n−1)/n times the bytes."""


@dataclass(frozen=True, eq=False)
class Network:
    """All links as matrices (n_nodes, n_nodes)."""

    latency_seconds: npt.NDArray[np.float64]
    seconds_per_byte: npt.NDArray[np.float64]
    jitter_seconds: npt.NDArray[np.float64]

    @classmethod
    def of(cls, nodes: Sequence[NodeProfile], links: LinkBetween) -> Network:
        """The links between `nodes`, in their order."""
        latency, seconds_per_byte, jitter = np.zeros((3, len(nodes), len(nodes)))
        for i, node in enumerate(nodes):
            for j, other in enumerate(nodes[:i]):
                link = links(node.name, other.name)
                latency[i, j] = latency[j, i] = link.latency_seconds
                seconds_per_byte[i, j] = seconds_per_byte[j, i] = 1.0 / link.bytes_per_second
                jitter[i, j] = jitter[j, i] = link.jitter_seconds
        return cls(latency, seconds_per_byte, jitter)

    def among(self, kept: Sequence[int]) -> Network:
        """The links between these nodes (by their numbers) alone, in this order."""
        chosen = np.ix_(kept, kept)
        return Network(self.latency_seconds[chosen], self.seconds_per_byte[chosen], self.jitter_seconds[chosen])

    @property
    def n_nodes(self) -> int:
        """How many there are."""
        return len(self.latency_seconds)

    def seconds(self, hops: Sequence[Traffic]) -> float:
        """Time of hops that follow each other.

        A hop is over when the last node has sent and received all of its part, one message after the other in each
        direction, and the slowest link's latency has passed. Of messages that come late by chance the latest counts.
        """
        return sum(self._hop_seconds(hop) for hop in hops)

    def _hop_seconds(self, hop: Traffic) -> float:
        if not np.any(hop):
            return 0.0
        taken, used = hop * self.seconds_per_byte, hop > 0
        moving = max(taken.sum(axis=0).max(), taken.sum(axis=1).max())
        return float(moving + self.latency_seconds[used].max() + latest(self.jitter_seconds[used]))


def latest(jitters: npt.NDArray[np.float64]) -> float:
    """Expected delay of the latest of several messages, each late by an exponentially distributed time of this mean.

    For n equal means it is the mean times 1 + 1/2 + … + 1/n, here by the approximation ln(n + 1/2) + 0.577 (exact
    within 2 %); where means differ, n is their sum as multiples of the largest.
    """
    largest = float(jitters.max())
    if largest == 0.0:
        return 0.0
    return largest * (math.log(float(jitters.sum()) / largest + 0.5) + 0.5772)


def all_reduce_hops(
    contributes: Sequence[bool], width: int, n_rows: int, wire: FloatType, algorithm: Algorithm
) -> list[Traffic]:
    """Traffic of each hop of an all-reduce of rows (n_rows, width); a node that contributes nothing only receives."""
    senders = np.array(contributes, np.float64)
    n_blocks = -(-width // _BLOCK)
    block_bytes = n_rows * wire.row_bytes(_BLOCK)
    if algorithm is Algorithm.DIRECT:
        return [_to_others(senders * n_blocks * block_bytes)]
    n_nodes = len(contributes)
    ends = np.arange(n_nodes + 1) * n_blocks // n_nodes  # as native code cuts them
    span_bytes = np.diff(ends) * float(block_bytes)
    # A node sends each other its columns of the partial sums, then gets theirs of the whole ones.
    return [_to_others(span_bytes).T * senders[:, None], _to_others(span_bytes)]


def broadcast_hops(n_nodes: int, width: int, n_rows: int) -> list[Traffic]:
    """Traffic of f32 rows (n_rows, width) from rank 0 to all others."""
    sent = np.zeros(n_nodes)
    sent[0] = 4 * n_rows * width
    return [_to_others(sent)]


def gather_hops(sent: Sequence[int]) -> list[Traffic]:
    """Traffic of `sent` bytes from each node to rank 0."""
    hop = np.zeros((len(sent), len(sent)))
    hop[1:, 0] = sent[1:]
    return [hop]


def _to_others(sent: npt.NDArray[np.float64]) -> Traffic:
    """Each node sends the same number of bytes to every other."""
    hop: Traffic = np.repeat(sent[:, None], len(sent), axis=1)
    np.fill_diagonal(hop, 0.0)
    return hop
