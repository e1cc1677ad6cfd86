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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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

_MOST_NODES_FOR_ALL_SUBSETS = 10


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
    _check_names(nodes)
    return _plan(Outline(spec, tensors, options), nodes, links, options)


def best_subset(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    nodes: Sequence[NodeProfile],
    links: LinkBetween,
    options: PlanOptions,
) -> ClusterPlan:
    """The plan with the shortest time per token among those that use the root and any of the other nodes.

    All subsets of up to 10 nodes are tried; of more, one node after the other is left out, always the one without
    which the rest is fastest. `options.ratio` plays no part. Raises DoesNotFitError when the model fits none
    of them.
    """
    _check_names(nodes)
    search = _Search(Outline(spec, tensors, options), links, replace(options, ratio=None))
    if len(nodes) <= _MOST_NODES_FOR_ALL_SUBSETS:
        for kept in _subsets(nodes[1:]):
            search.attempt((nodes[0], *kept))
    else:
        search.leave_out_one_by_one(nodes)
    return search.result()


def _plan(outline: Outline, nodes: Sequence[NodeProfile], links: LinkBetween, options: PlanOptions) -> ClusterPlan:
    network = Network.of(nodes, links)
    if options.ratio is None:
        plans = [_assess(outline, nodes, network, options, shards) for shards in divide(outline, nodes)]
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
        compute_seconds=sum(
            segments[0].repeats * slowest_seconds(segments, nodes)
            for segments in zip(*(load.segments for load in loads), strict=True)
        ),
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
        for segments in zip(*(load.segments for load in loads), strict=True):
            repeats = segments[0].repeats
            exchange, width = segments[0].exchange, segments[0].exchange_width
            if isinstance(exchange, Broadcast):
                hops = broadcast_hops(len(loads), width, n_rows)
            elif isinstance(exchange, AllReduce):
                contributes = [isinstance(s.exchange, AllReduce) and s.exchange.contributes for s in segments]
                hops = all_reduce_hops(contributes, width, n_rows, wire, algorithm)
            elif with_logits and isinstance(exchange, GatherCandidates):
                hops = gather_hops([4 * n_rows * segment.exchange_width for segment in segments])
            else:
                continue
            self.count += repeats
            self.seconds += repeats * network.seconds(hops)
            self.traffic = self.traffic + repeats * sum(hops)


class _Search:
    """Keeps the fastest plan found so far, and why the first that failed did."""

    def __init__(self, outline: Outline, links: LinkBetween, options: PlanOptions) -> None:
        self._outline = outline
        self._links = links
        self._options = options
        self._best: ClusterPlan | None = None
        self._failure: DoesNotFitError | None = None

    def attempt(self, nodes: Sequence[NodeProfile]) -> float:
        """Seconds per token with these nodes, infinite when the model does not fit."""
        try:
            found = _plan(self._outline, nodes, self._links, self._options)
        except DoesNotFitError as failure:
            self._failure = self._failure or failure
            return float("inf")
        if self._best is None or found.decode_seconds <= self._best.decode_seconds:  # of equals the smaller set
            self._best = found
        return found.decode_seconds

    def leave_out_one_by_one(self, nodes: Sequence[NodeProfile]) -> None:
        self.attempt(nodes)
        while len(nodes) > 1:
            smaller = [(*nodes[:i], *nodes[i + 1 :]) for i in range(1, len(nodes))]
            # Where nothing fits, the node with the least memory goes: it may not even hold what all nodes hold.
            seconds = [self.attempt(kept) for kept in smaller]
            leaves = min(range(len(smaller)), key=lambda i: (seconds[i], nodes[i + 1].memory_bytes))
            nodes = smaller[leaves]

    def result(self) -> ClusterPlan:
        if self._best is None:
            assert self._failure is not None
            raise self._failure
        return self._best


def _subsets(nodes: Sequence[NodeProfile]) -> Iterator[tuple[NodeProfile, ...]]:
    """All of them, the whole first, so that the failure told is that of all nodes."""
    for size in range(len(nodes), -1, -1):
        yield from itertools.combinations(nodes, size)


def _token_bytes(by_algorithm: Mapping[Algorithm, float]) -> TokenBytes:
    return TokenBytes(float(by_algorithm[Algorithm.DIRECT]), float(by_algorithm[Algorithm.REDUCE_SCATTER_ALL_GATHER]))


def _check_names(nodes: Sequence[NodeProfile]) -> None:
    names = [node.name for node in nodes]
    if not names:
        raise DllamaError("a cluster needs at least one node, the root")
    for name in names:
        if names.count(name) > 1:
            raise DllamaError(f"two nodes are named {name}; give each its own name")
