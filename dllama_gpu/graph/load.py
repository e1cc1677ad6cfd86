"""What a share of a model asks of its node, read off the graph that the node would run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import (
    Attention,
    BufferType,
    Embed,
    Exchange,
    GatedMatmul,
    GatherCandidates,
    Graph,
    KvCache,
    Matmul,
    Op,
    RmsNorm,
    Rows,
    Weight,
)
from dllama_gpu.graph.llama import GraphOptions, build_llama
from dllama_gpu.graph.profile import NodeProfile, PlanOptions
from dllama_gpu.graph.shard import Shard, Span
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import Architecture, ModelSpec

_PAST_POSITIONS = 512  # how far into a conversation the predictions look, seq_len permitting


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
        cache_bytes += count * sum(graph.n_slots * graph.seq_len * _position_bytes(c) for c in meter.caches_of(ops))
    buffer_bytes = sum(graph.rows_of(buffer) * _buffer_row_bytes(buffer.type, buffer.width) for buffer in graph.buffers)
    return NodeLoad(weight_bytes, cache_bytes, buffer_bytes, tuple(loads))


class Outline:
    """A model reduced to one layer of each kind, for building many nodes' graphs quickly.

    Layers whose tensors have the same number formats ask the same of a node; the first is a kind of its own, because
    what is computed once for all layers stands in its first segment.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, TensorInfo], options: PlanOptions) -> None:
        if spec.architecture is not Architecture.LLAMA:
            raise DllamaError(f"the architecture {spec.architecture.value} cannot be run yet; llama can")
        self.spec = spec
        self._tensors = tensors
        self._graph_options = GraphOptions(
            max_rows=options.max_rows,
            max_logit_rows=options.max_logit_rows,
            n_slots=options.n_slots,
            seq_len=options.seq_len,
            buffer_type=options.buffer_type,
        )
        kinds = _kinds_of_layers(spec, tensors)
        self._short_spec = replace(spec, n_layers=len(kinds))
        self._short_tensors = {name: info for name, info in tensors.items() if not name.startswith("layers.")}
        for number, (layer, _) in enumerate(kinds):
            for name, info in _layer_tensors(tensors, layer).items():
                self._short_tensors[f"layers.{number}.{name}"] = replace(info, name=f"layers.{number}.{name}")
        # The embedding, attention and feed-forward part of each layer, the head.
        self._repeats = (1, *(count for _, count in kinds for _ in range(2)), 1)
        self._loads: dict[tuple[int | bool, ...], NodeLoad] = {}

    def load(self, shard: Shard) -> NodeLoad:
        """What `shard` asks of its node; equal to `measure` of the whole model's graph."""
        sizes = (len(shard.heads), len(shard.kv_heads(self.spec)), len(shard.hidden), len(shard.vocab))
        key = (shard.n_nodes == 1, shard.rank == 0, *sizes)
        if key not in self._loads:
            self._loads[key] = self._measure(shard)
        return self._loads[key]

    def part_loads(self) -> tuple[SegmentLoad, SegmentLoad, SegmentLoad]:
        """Attention of all layers, feed-forward part of all layers, and head, each as one segment."""
        spec = self.spec
        shard = Shard(0, 2, Span(0, spec.n_heads), Span(0, spec.hidden_dim), Span(0, spec.vocab_size))
        segments = self.load(shard).segments
        return _sum(segments[1:-1:2]), _sum(segments[2:-1:2]), segments[-1]

    def _measure(self, shard: Shard) -> NodeLoad:
        if shard.n_nodes == 1:  # no exchanges, hence one segment
            return measure(build_llama(self.spec, self._tensors, self._graph_options, shard))
        graph = build_llama(self._short_spec, self._short_tensors, self._graph_options, shard)
        return measure(graph, self._repeats)


class _Meter:
    def __init__(self, graph: Graph) -> None:
        self._weights = {weight.name: weight for weight in graph.weights}
        self._caches = {cache.name: cache for cache in graph.caches}
        self._buffers = {buffer.name: buffer for buffer in graph.buffers}
        self._past = min(_PAST_POSITIONS, graph.seq_len)
        self._seen: set[str] = set()

    def segment(self, ops: Sequence[Op], exchange: Exchange | None, repeats: int) -> SegmentLoad:
        decode_bytes = prefill_bytes = row_macs = 0
        for op in ops:
            n_bytes, macs = self._work(op)
            decode_bytes += n_bytes
            if not self._for_logits(op):
                prefill_bytes += n_bytes
                row_macs += macs
        return SegmentLoad(decode_bytes, prefill_bytes, row_macs, len(ops), exchange, self._width(exchange), repeats)

    def new_weights(self, ops: Sequence[Op]) -> list[Weight]:
        """Weights that no earlier segment has used; tied embeddings are used twice but held once."""
        names = [name for op in ops for name in _weight_names(op) if name not in self._seen]
        self._seen.update(names)
        return [self._weights[name] for name in dict.fromkeys(names)]

    def caches_of(self, ops: Sequence[Op]) -> list[KvCache]:
        return [self._caches[op.cache] for op in ops if isinstance(op, Attention)]

    def _work(self, op: Op) -> tuple[int, int]:
        """Bytes read and multiply-adds for one row."""
        if isinstance(op, Embed):
            weight = self._weights[op.weight]
            return weight.float_type.row_bytes(weight.n_columns), 0
        if isinstance(op, Attention):
            cache = self._caches[op.cache]
            return self._past * _position_bytes(cache), 2 * self._past * op.n_heads * cache.head_dim
        weights = [self._weights[name] for name in _weight_names(op)]
        return sum(map(_weight_bytes, weights)), sum(weight.n_rows * weight.n_columns for weight in weights)

    def _width(self, exchange: Exchange | None) -> int:
        if exchange is None:
            return 0
        names = (exchange.own or ()) if isinstance(exchange, GatherCandidates) else (exchange.buffer,)
        return sum(self._buffers[name].width for name in names)

    def _for_logits(self, op: Op) -> bool:
        return isinstance(op, RmsNorm | Matmul) and self._buffers[op.out].rows is Rows.LOGITS


def _weight_names(op: Op) -> tuple[str, ...]:
    if isinstance(op, GatedMatmul):
        return op.gate, op.up
    return (op.weight,) if isinstance(op, Embed | RmsNorm | Matmul) else ()


def _weight_bytes(weight: Weight) -> int:
    return weight.n_rows * weight.float_type.row_bytes(weight.n_columns)


def _position_bytes(cache: KvCache) -> int:
    """Key and value of one position in f16."""
    return 2 * 2 * cache.n_kv_heads * cache.head_dim


def _buffer_row_bytes(type: BufferType, width: int) -> int:
    return FloatType.Q80.row_bytes(width) if type is BufferType.Q80 else 4 * width


def _layer_tensors(tensors: Mapping[str, TensorInfo], layer: int) -> dict[str, TensorInfo]:
    prefix = f"layers.{layer}."
    return {name.removeprefix(prefix): info for name, info in tensors.items() if name.startswith(prefix)}


def _kinds_of_layers(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> list[tuple[int, int]]:
    """(A layer, how many are like it) for each kind; the first layer is a kind of its own."""
    formats: dict[int, set[tuple[str, FloatType]]] = {layer: set() for layer in range(spec.n_layers)}
    for name, info in tensors.items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            formats[int(number)].add((rest, info.float_type))
    kinds: dict[tuple[bool, frozenset[tuple[str, FloatType]]], list[int]] = {}
    for layer, described in formats.items():
        kinds.setdefault((layer == 0, frozenset(described)), []).append(layer)
    return [(layers[0], len(layers)) for layers in kinds.values()]


def _sum(segments: Sequence[SegmentLoad]) -> SegmentLoad:
    def total(field: str) -> int:
        return sum(segment.repeats * int(getattr(segment, field)) for segment in segments)

    return SegmentLoad(total("decode_bytes"), total("prefill_bytes"), total("row_macs"), total("n_ops"), None, 0)
