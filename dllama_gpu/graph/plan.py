"""Who computes what in a cluster, and how fast that will be, said before anything is loaded.

A step is a row of segments with an exchange behind each, and all nodes wait for each other there. Hence

* decode seconds = sum over segments of max over nodes (bytes read / bytes_per_second + ops · op_seconds; its
  expectation where nodes hold whole experts)
  + sum over exchanges of (latency + bytes / bandwidth), for one row;
* prefill seconds of a chunk = the same with max(2 · multiply-adds · rows / flops_per_second, bytes read /
  bytes_per_second) for arithmetic, and all rows of the chunk in each exchange.

All sizes come from the graphs that the nodes would run. docs/planning.md compares predictions with measurements.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.collective import (
    Algorithm,
    Network,
    Traffic,
    all_reduce_hops,
    broadcast_hops,
    gather_hops,
)
from dllama_gpu.graph.division import DoesNotFitError, divide, size_text
from dllama_gpu.graph.expert_balance import slowest_seconds
from dllama_gpu.graph.graph import AllReduce, Broadcast, GatherCandidates
from dllama_gpu.graph.load import NodeLoad, Outline
from dllama_gpu.graph.profile import LinkBetween, NodeProfile, PlanOptions
from dllama_gpu.graph.shard import Shard, shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec


@dataclass(frozen=True)
class TokenBytes:
    """Bytes that cross the network for one token, by the algorithm that adds up partial sums."""

    direct: float
    reduce_scatter: float


@dataclass(frozen=True)
class NodePlan:
    """One node's share, and what it costs the node."""

    node: NodeProfile
    shard: Shard
    weight_bytes: int
    kv_cache_bytes: int
    buffer_bytes: int
    decode_seconds: float
    """It computes for one token."""
    sent: TokenBytes
    """To all other nodes together."""

    @property
    def memory_bytes(self) -> int:
        """Weights, KV cache and activations."""
        return self.weight_bytes + self.kv_cache_bytes + self.buffer_bytes


@dataclass(frozen=True)
class LinkPlan:
    """What crosses the link between two nodes for one token, both directions together."""

    first: str
    second: str
    bytes: TokenBytes


@dataclass(frozen=True)
class ClusterPlan:
    """Shares of all nodes by rank, and what to expect."""

    nodes: tuple[NodePlan, ...]
    links: tuple[LinkPlan, ...]
    compute_seconds: float
    """For one token: in every segment the slowest node counts."""
    exchange_seconds: float
    """For one token, by the faster algorithm."""
    n_exchanges: int
    algorithm: Algorithm
    """The faster one for one token."""
    prefill_tokens_per_second: float

    @property
    def shards(self) -> tuple[Shard, ...]:
        """By rank."""
        return tuple(node.shard for node in self.nodes)

    @property
    def names(self) -> tuple[str, ...]:
        """By rank."""
        return tuple(node.node.name for node in self.nodes)

    @property
    def decode_seconds(self) -> float:
        """One token of one user."""
        return self.compute_seconds + self.exchange_seconds

    @property
    def tokens_per_second(self) -> float:
        """Decode of one user."""
        return 1.0 / self.decode_seconds

    @property
    def bottleneck(self) -> str:
        """Name of the node that computes longest for a token."""
        return max(self.nodes, key=lambda node: node.decode_seconds).node.name


def plan(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    nodes: Sequence[NodeProfile],
    links: LinkBetween,
    options: PlanOptions,
) -> ClusterPlan:
    """Shares for all of `nodes`, the root first: balanced within their memory, or as `options.ratio` says.

    Raises DoesNotFitError saying how much memory is missing, DllamaError for a ratio of another number of shares or a
    name used twice.
    """
    check_names(nodes)
    return plan_outlined(Outline(spec, tensors, options), nodes, Network.of(nodes, links), options)


def plan_outlined(
    outline: Outline, nodes: Sequence[NodeProfile], network: Network, options: PlanOptions
) -> ClusterPlan:
    """As `plan`, for a model and a network that were made ready."""
    if options.ratio is None:
        plans = [_assess(outline, nodes, network, options, shards) for shards in divide(outline, nodes).ways]
        return min(plans, key=lambda found: found.decode_seconds)
    if len(options.ratio) != len(nodes):
        raise DllamaError(f"the ratio has {len(options.ratio)} shares for {len(nodes)} nodes; give one a node")
    found = _assess(outline, nodes, network, options, shard_by_ratio(outline.spec, options.ratio))
    for node in found.nodes:
        if node.memory_bytes > node.node.memory_bytes:
            raise DoesNotFitError(
                f"{node.node.name} would need {size_text(node.memory_bytes)} for its share of the ratio, but can give "
                f"{size_text(node.node.memory_bytes)}; lower its share, --max-seq-len or --slots"
            )
    return found


def decode_seconds(loads: Sequence[NodeLoad], nodes: Sequence[NodeProfile], network: Network, wire: FloatType) -> float:
    """What `ClusterPlan.decode_seconds` will be for nodes with these loads."""
    return _compute_seconds(loads, nodes) + min(_Exchanges(loads, network, wire, 1, a).seconds for a in Algorithm)


def _compute_seconds(loads: Sequence[NodeLoad], nodes: Sequence[NodeProfile]) -> float:
    segments = zip(*(load.segments for load in loads), strict=True)
    return math.fsum(of_each[0].repeats * slowest_seconds(of_each, nodes) for of_each in segments)


def _assess(
    outline: Outline,
    nodes: Sequence[NodeProfile],
    network: Network,
    options: PlanOptions,
    shards: Sequence[Shard],
) -> ClusterPlan:
    """What the given shares cost."""
    loads = [outline.load(shard) for shard in shards]
    chunk = min(options.max_rows, options.seq_len)
    one_row = {algorithm: _Exchanges(loads, network, options.wire, 1, algorithm) for algorithm in Algorithm}
    algorithm = min(Algorithm, key=lambda a: one_row[a].seconds)
    chunk_exchange = min(
        _Exchanges(loads, network, options.wire, chunk, a, with_logits=False).seconds for a in Algorithm
    )
    decode = [[s.repeats * s.decode_seconds(n) for s in load.segments] for n, load in zip(nodes, loads, strict=True)]
    prefill = [
        [s.repeats * s.prefill_seconds(n, chunk) for s in load.segments] for n, load in zip(nodes, loads, strict=True)
    ]
    sent = {a: exchanges.traffic for a, exchanges in one_row.items()}
    return ClusterPlan(
        nodes=tuple(
            NodePlan(
                node=node,
                shard=shards[rank],
                weight_bytes=loads[rank].weight_bytes,
                kv_cache_bytes=loads[rank].kv_cache_bytes,
                buffer_bytes=loads[rank].buffer_bytes,
                decode_seconds=sum(decode[rank]),
                sent=_token_bytes({a: traffic[rank].sum() for a, traffic in sent.items()}),
            )
            for rank, node in enumerate(nodes)
        ),
        links=tuple(
            LinkPlan(nodes[i].name, nodes[j].name, _token_bytes({a: t[i, j] + t[j, i] for a, t in sent.items()}))
            for i, j in itertools.combinations(range(len(nodes)), 2)
        ),
        compute_seconds=_compute_seconds(loads, nodes),
        exchange_seconds=one_row[algorithm].seconds,
        n_exchanges=one_row[algorithm].count,
        algorithm=algorithm,
        prefill_tokens_per_second=chunk / (sum(map(max, zip(*prefill, strict=True))) + chunk_exchange),
    )


class _Exchanges:
    """All exchanges of a step of `n_rows`: their number, time and traffic."""

    def __init__(
        self,
        loads: Sequence[NodeLoad],
        network: Network,
        wire: FloatType,
        n_rows: int,
        algorithm: Algorithm,
        with_logits: bool = True,
    ) -> None:
        self.count = 0
        self.seconds = 0.0
        self.traffic: Traffic = 0.0 * network.latency_seconds
        alike: Counter[tuple[type, int, tuple[int, ...]]] = Counter()
        for segments in zip(*(load.segments for load in loads), strict=True):
            kind = type(segments[0].exchange)
            of_each: tuple[int, ...] = ()
            if kind is AllReduce:
                of_each = tuple(isinstance(s.exchange, AllReduce) and s.exchange.contributes for s in segments)
            elif kind is GatherCandidates:
                of_each = tuple(segment.exchange_width for segment in segments)
            alike[kind, segments[0].exchange_width, of_each] += segments[0].repeats
        for (kind, width, of_each), repeats in alike.items():
            if kind is Broadcast:
                hops = broadcast_hops(len(loads), width, n_rows)
            elif kind is AllReduce:
                hops = all_reduce_hops(list(map(bool, of_each)), width, n_rows, wire, algorithm)
            elif with_logits and kind is GatherCandidates:
                hops = gather_hops([4 * n_rows * numbers for numbers in of_each])
            else:
                continue
            self.count += repeats
            self.seconds += repeats * network.seconds(hops)
            self.traffic = self.traffic + repeats * sum(hops)


def _token_bytes(by_algorithm: Mapping[Algorithm, float]) -> TokenBytes:
    return TokenBytes(float(by_algorithm[Algorithm.DIRECT]), float(by_algorithm[Algorithm.REDUCE_SCATTER_ALL_GATHER]))


def check_names(nodes: Sequence[NodeProfile]) -> None:
    """Raises DllamaError unless there is a node, and every one has its own name."""
    names = [node.name for node in nodes]
    if not names:
        raise DllamaError("a cluster needs at least one node, the root")
    for name in names:
        if names.count(name) > 1:
            raise DllamaError(f"two nodes are named {name}; give each its own name")
