"""What a share of a model asks of its node, read off the graph that the node would run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.graph import (
    Attention,
    BufferType,
    Embed,
    Exchange,
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    GatherCandidates,
    Graph,
    KvCache,
    Matmul,
    Op,
    RmsNorm,
    RopeStore,
    Rows,
    TopExperts,
    Weight,
)
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.profile import NodeProfile, PlanOptions
from dllama_gpu.graph.shard import Shard, Span
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec

_PAST_POSITIONS = 512  # how far into a conversation the predictions look, seq_len permitting


@dataclass(frozen=True)
class ExpertsLoad:
    """Whole experts of a layer that a node holds, of which a row chooses some."""

    bytes_each: int
    n_held: int
    n_chosen: int
    """Of all nodes' experts, by one row."""


@dataclass(frozen=True)
class SegmentLoad:
    """The ops between two exchanges, `repeats` times in a step."""

    decode_bytes: int
    """Weights and KV cache read for one row that wants logits."""
    prefill_bytes: int
    """Weights read for rows that want none."""
    row_macs: int
    """Multiply-adds for each row that wants no logits."""
    n_ops: int
    exchange: Exchange | None
    exchange_width: int
    """4-byte numbers for each row that the node puts into the exchange."""
    repeats: int = 1
    experts: ExpertsLoad | None = None
    """Where a node holds some experts and others the rest; their expected bytes are among the others."""

    def decode_seconds(self, node: NodeProfile) -> float:
        """Once, for one row: memory traffic bounds it, every op costs a little more."""
        return self.decode_bytes / node.bytes_per_second + self.n_ops * node.op_seconds

    def prefill_seconds(self, node: NodeProfile, n_rows: int) -> float:
        """Once, for `n_rows` rows: arithmetic bounds it, or memory traffic where rows are few."""
        arithmetic = 2 * self.row_macs * n_rows / node.flops_per_second
        return max(arithmetic, self.prefill_bytes / node.bytes_per_second) + self.n_ops * node.op_seconds


@dataclass(frozen=True)
class NodeLoad:
    """Bytes to hold and work to do."""

    weight_bytes: int
    kv_cache_bytes: int
    buffer_bytes: int
    segments: tuple[SegmentLoad, ...]

    @property
    def memory_bytes(self) -> int:
        """All that the graph declares."""
        return self.weight_bytes + self.kv_cache_bytes + self.buffer_bytes


def measure(graph: Graph, repeats: Sequence[int] | None = None) -> NodeLoad:
    """The load of a graph whose segments stand for `repeats` like them (default: each for itself)."""
    segments = graph.segments()
    counts = [1] * len(segments) if repeats is None else repeats
    meter = _Meter(graph)
    loads, weight_bytes, cache_bytes = [], 0, 0
    for (ops, exchange), count in zip(segments, counts, strict=True):
        loads.append(meter.segment(ops, exchange, count))
        weight_bytes += count * sum(map(_weight_bytes, meter.new_weights(ops)))
        cache_bytes += count * sum(graph.n_slots * graph.seq_len * c.position_bytes for c in meter.caches_of(ops))
    buffer_bytes = sum(graph.rows_of(buffer) * _buffer_row_bytes(buffer.type, buffer.width) for buffer in graph.buffers)
    return NodeLoad(weight_bytes, cache_bytes, buffer_bytes, tuple(loads))


class Outline:
    """A model reduced to one layer of each kind, for building many nodes' graphs quickly.

    Layers whose tensors have the same number formats, and which see as far, ask the same of a node; the first is a kind
    of its own, because what is computed once for all layers stands in its first segment.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, TensorInfo], options: PlanOptions) -> None:
        self.spec = spec
        self._tensors = tensors
        self._graph_options = GraphOptions(
            max_rows=options.max_rows,
            max_logit_rows=options.max_logit_rows,
            n_slots=options.n_slots,
            seq_len=options.seq_len,
            buffer_type=options.buffer_type,
            cache_type=options.cache_type,
        )
        kinds = _kinds_of_layers(spec, tensors)
        self._layers = [layer for layer, _ in kinds]
        # The embedding, attention and feed-forward part of each layer, the head.
        self._repeats = (1, *(count for _, count in kinds for _ in range(2)), 1)
        self._loads: dict[tuple[int | bool, ...], NodeLoad] = {}

    def load(self, shard: Shard) -> NodeLoad:
        """What `shard` asks of its node; equal to `measure` of the whole model's graph."""
        n_experts = len(shard.experts_of(self.spec))
        sizes = (len(shard.heads), len(shard.kv_heads(self.spec)), len(shard.hidden), n_experts, len(shard.vocab))
        key = (shard.n_nodes == 1, shard.rank == 0, *sizes)
        if key not in self._loads:
            self._loads[key] = self._measure(shard)
        return self._loads[key]

    def part_loads(self) -> tuple[SegmentLoad, SegmentLoad, SegmentLoad]:
        """Attention of all layers, feed-forward part of all layers, and head, each as one segment."""
        spec = self.spec
        shard = Shard(0, 2, Span(0, spec.n_heads), Span(0, spec.ffn_dim), Span(0, spec.vocab_size))
        segments = self.load(shard).segments
        return _sum(segments[1:-1:2]), _sum(segments[2:-1:2]), segments[-1]

    def _measure(self, shard: Shard) -> NodeLoad:
        if shard.n_nodes == 1:  # no exchanges, hence one segment
            return measure(build_graph(self.spec, self._tensors, self._graph_options, shard))
        graph = build_graph(self.spec, self._tensors, self._graph_options, shard, self._layers)
        return measure(graph, self._repeats)


class _Meter:
    def __init__(self, graph: Graph) -> None:
        self._weights = {weight.name: weight for weight in graph.weights}
        self._caches = {cache.name: cache for cache in graph.caches}
        self._buffers = {buffer.name: buffer for buffer in graph.buffers}
        self._past = min(_PAST_POSITIONS, graph.seq_len)
        self._max_rows = graph.max_rows
        self._routed = {op.ids: self._buffers[op.logits].width for op in graph.steps if isinstance(op, TopExperts)}
        self._seen: set[str] = set()

    def segment(self, ops: Sequence[Op], exchange: Exchange | None, repeats: int) -> SegmentLoad:
        decode_bytes = prefill_bytes = row_macs = 0
        for op in ops:
            n_bytes, macs = self._work(op)
            used, used_by_many = self._share_of_experts(op, 1), self._share_of_experts(op, self._max_rows)
            decode_bytes += round(n_bytes * used)
            if not self._for_logits(op):
                prefill_bytes += round(n_bytes * used_by_many)
                row_macs += round(macs * used)
        return SegmentLoad(
            decode_bytes,
            prefill_bytes,
            row_macs,
            len(ops),
            exchange,
            self._width(exchange),
            repeats,
            self._whole_experts(ops),
        )

    def new_weights(self, ops: Sequence[Op]) -> list[Weight]:
        """Weights that no earlier segment has used; tied embeddings are used twice but held once."""
        names = [name for op in ops for name in _weight_names(op) if name not in self._seen]
        self._seen.update(names)
        return [self._weights[name] for name in dict.fromkeys(names)]

    def caches_of(self, ops: Sequence[Op]) -> list[KvCache]:
        return [self._caches[op.cache] for op in ops if isinstance(op, Attention)]

    def _work(self, op: Op) -> tuple[int, int]:
        """Bytes read and multiply-adds for one row, of experts with all of them."""
        if isinstance(op, Embed):
            weight = self._weights[op.weight]
            return weight.float_type.row_bytes(weight.n_columns), 0
        if isinstance(op, Attention):
            cache = self._caches[op.cache]
            past = min(self._past, op.window) if op.window else self._past
            return past * cache.position_bytes, 2 * past * op.n_heads * cache.head_dim
        weights = [self._weights[name] for name in _weight_names(op)]
        return sum(map(_weight_bytes, weights)), sum(weight.n_rows * weight.n_columns for weight in weights)

    def _share_of_experts(self, op: Op, n_rows: int) -> float:
        """What part of an op's experts `n_rows` rows are expected to choose, each its own; 1 for other ops."""
        if not isinstance(op, ExpertGatedMatmul | ExpertMatmul):
            return 1.0
        not_chosen = 1.0 - self._buffers[op.ids].width / self._routed[op.ids]
        return float(1.0 - not_chosen**n_rows)

    def _whole_experts(self, ops: Sequence[Op]) -> ExpertsLoad | None:
        expert_ops = [op for op in ops if isinstance(op, ExpertGatedMatmul | ExpertMatmul)]
        if not expert_ops:
            return None
        weights = [self._weights[name] for op in expert_ops for name in _weight_names(op)]
        n_held, ids = weights[0].n_experts, expert_ops[0].ids
        if n_held == self._routed[ids]:
            return None
        return ExpertsLoad(sum(map(_weight_bytes, weights)) // n_held, n_held, self._buffers[ids].width)

    def _width(self, exchange: Exchange | None) -> int:
        if exchange is None:
            return 0
        names = (exchange.own or ()) if isinstance(exchange, GatherCandidates) else (exchange.buffer,)
        return sum(self._buffers[name].width for name in names)

    def _for_logits(self, op: Op) -> bool:
        return isinstance(op, RmsNorm | Matmul) and self._buffers[op.out].rows is Rows.LOGITS


def _weight_names(op: Op) -> tuple[str, ...]:
    if isinstance(op, GatedMatmul | ExpertGatedMatmul):
        return op.gate, op.up
    if isinstance(op, ExpertMatmul):
        return (op.down,)
    if isinstance(op, RopeStore):
        return (*(op.biases or ()), *(op.norms or ()))
    return (op.weight,) if isinstance(op, Embed | RmsNorm | Matmul) else ()


def _weight_bytes(weight: Weight) -> int:
    return weight.n_rows * weight.float_type.row_bytes(weight.n_columns)


def _buffer_row_bytes(type: BufferType, width: int) -> int:
    return FloatType.Q80.row_bytes(width) if type is BufferType.Q80 else 4 * width


def _kinds_of_layers(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> list[tuple[int, int]]:
    """(A layer, how many are like it) for each kind; the first layer is a kind of its own."""
    formats: dict[int, set[tuple[str, FloatType]]] = {layer: set() for layer in range(spec.n_layers)}
    for name, info in tensors.items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            formats[int(number)].add((rest, info.float_type))
    kinds: dict[tuple[bool, int, frozenset[tuple[str, FloatType]]], list[int]] = {}
    for layer, described in formats.items():
        kinds.setdefault((layer == 0, spec.window(layer), frozenset(described)), []).append(layer)
    return [(layers[0], len(layers)) for layers in kinds.values()]


def _sum(segments: Sequence[SegmentLoad]) -> SegmentLoad:
    def total(field: str) -> int:
        return sum(segment.repeats * int(getattr(segment, field)) for segment in segments)

    return SegmentLoad(total("decode_bytes"), total("prefill_bytes"), total("row_macs"), total("n_ops"), None, 0)
