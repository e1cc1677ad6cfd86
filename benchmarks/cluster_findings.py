"""What a run of the cluster benchmark found, and the numbers that follow from it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.cluster_root import ClusterMeasurement
from benchmarks.exchange_node import ExchangeJob
from benchmarks.findings import Settings
from benchmarks.machine import Machine
from benchmarks.measure import Measurement


@dataclass(frozen=True)
class ExchangeFinding:
    """Exchanges among `n_nodes` processes: seconds of each repetition on rank 0, bytes that every node sent in one."""

    network: str
    n_nodes: int
    job: ExchangeJob
    seconds: list[float]
    bytes_sent: list[float]

    @property
    def median_seconds(self) -> float:
        """Of one repetition."""
        return statistics.median(self.seconds)

    @property
    def mean_seconds(self) -> float:
        """Of one repetition; what counts when they follow one another."""
        return statistics.fmean(self.seconds)


@dataclass(frozen=True)
class ClusterRound:
    """The model on one node, then on two: the second one's cache first empty, then full."""

    alone: Measurement
    cold: ClusterMeasurement
    warm: ClusterMeasurement


@dataclass(frozen=True)
class ClusterResults:
    """Everything of one run. `slow_network` says what the slow network is made of, or why there is none."""

    date: str
    machine: Machine
    settings: Settings
    model: str
    slow_network: str
    exchanges: list[ExchangeFinding]
    rounds: list[ClusterRound]


def original_bytes_per_token(n_nodes: int, dim: int, n_layers: int) -> int:
    """Bytes that a node of distributed-llama sends for a token: its Q80 row to every other node, twice a layer."""
    return (n_nodes - 1) * 2 * n_layers * (dim // 32 * 34)
