"""Graph of the Llama architecture (Llama 2 and 3, Mistral, SmolLM2 and others of the same arithmetic)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dllama_gpu.graph.graph import (
    AllReduce,
    Attention,
    Broadcast,
    Buffer,
    BufferType,
    Embed,
    GatedMatmul,
    GatherCandidates,
    Graph,
    KvCache,
    Matmul,
    RmsNorm,
    RopeAngles,
    RopeStore,
    Rows,
    Step,
    TensorSlice,
    TopCandidates,
    Weight,
)
from dllama_gpu.graph.rope import rope_frequencies
from dllama_gpu.graph.shard import Shard, Span, whole
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec


@dataclass(frozen=True)
class GraphOptions:
    """Sizes and number formats that are the user's choice and not the model's."""

    max_rows: int = 128
    """Rows a step may have: the prefill chunk."""
    max_logit_rows: int | None = None
    """Rows of a step that may want logits; None: all of them. Each takes a row as wide as the vocabulary."""
    n_slots: int = 1
    """Sequences kept in the KV cache."""
    seq_len: int = 2048
    """Positions a slot can hold."""
    buffer_type: BufferType = BufferType.Q80
    """Input format of matmuls whose weights are quantized; other matmuls read f32."""
    n_candidates: int = 64
    """Best tokens found per row that wants logits."""


def build_llama(
    spec: ModelSpec, tensors: Mapping[str, TensorInfo], options: GraphOptions, shard: Shard | None = None
) -> Graph:
    """The graph of one node's `shard` of the model (default: all of it, on one node).

    `tensors` (canonical names) tells each tensor's number format; tensors of one format that read the same input
    are stacked into one weight.
    """
    return _LlamaBuilder(spec, tensors, options, shard or whole(spec)).build()


class _LlamaBuilder:
    def __init__(self, spec: ModelSpec, tensors: Mapping[str, TensorInfo], options: GraphOptions, shard: Shard) -> None:
        self.spec = spec
        self.tensors = tensors
        self.options = options
        self.shard = shard
        self.kv_heads = shard.kv_heads(spec)
        self.weights: dict[str, Weight] = {}
        self.buffers: dict[str, Buffer] = {}
        self.steps: list[Step] = []
        self.caches: list[KvCache] = []

    def build(self) -> Graph:
        self.embedding()
        for layer in range(self.spec.n_layers):
            self.attention_block(layer)
            self.feed_forward_block(layer)
        self.head()
        return Graph(
            buffers=tuple(self.buffers.values()),
            caches=tuple(self.caches),
            weights=tuple(self.weights.values()),
            steps=tuple(self.steps),
            vocab_size=self.spec.vocab_size,
            max_rows=self.options.max_rows,
            n_slots=self.options.n_slots,
            seq_len=self.options.seq_len,
            max_logit_rows=self.options.max_logit_rows,
        )

    def embedding(self) -> None:
        self.buffer("x", self.spec.dim)
        self.buffer("delta", self.spec.dim)
        if self.shard.rank == 0:
            self.steps.append(Embed(self.weight("embedding"), "x"))
        if self.shard.n_nodes > 1:
            self.steps.append(Broadcast("x"))
        if self.shard.heads:
            self.buffer("angles", self.spec.head_dim)
            self.steps.append(RopeAngles(rope_frequencies(self.spec), "angles"))

    def attention_block(self, layer: int) -> None:
        spec, heads, kv_heads, prefix = self.spec, self.shard.heads, self.kv_heads, f"layers.{layer}."
        q, k, v, o = (self.tensors[prefix + name] for name in ("q", "k", "v", "o"))
        normed = self.norm(prefix + "attention_norm", feeds=(q, k, v), add=None if layer == 0 else "delta")
        if heads:
            q_rows, kv_rows = _scaled(heads, spec.head_dim), _scaled(kv_heads, spec.head_dim)
            self.buffer("qkv", len(q_rows) + 2 * len(kv_rows))
            parts = [_rows(q, q_rows), _rows(k, kv_rows), _rows(v, kv_rows)]
            column = 0
            for weight in self.stacks(prefix, parts):
                self.steps.append(Matmul(normed, weight.name, "qkv", column))
                column += weight.n_rows
            cache = KvCache(f"kv.{layer}", len(kv_heads), spec.head_dim)
            self.caches.append(cache)
            self.steps.append(RopeStore("qkv", "angles", cache.name, len(heads), spec.rope_style))
            attended = self.input_buffer("attended", len(q_rows), (o,))
            group = spec.n_heads // spec.n_kv_heads
            first = heads.begin - kv_heads.begin * group
            scale = 1.0 / math.sqrt(spec.head_dim)
            self.steps.append(Attention("qkv", cache.name, attended, len(heads), group, scale, first))
            self.steps.append(Matmul(attended, self.weight(o.name, [_columns(o, q_rows)]), "delta"))
        self.sum_up("delta", bool(heads))

    def feed_forward_block(self, layer: int) -> None:
        hidden, prefix = self.shard.hidden, f"layers.{layer}."
        gate, up, down = (self.tensors[prefix + name] for name in ("gate", "up", "down"))
        normed = self.norm(prefix + "ffn_norm", feeds=(gate, up), add="delta")
        if hidden:
            gate_name, up_name = (self.weight(tensor.name, [_rows(tensor, hidden)]) for tensor in (gate, up))
            out = self.input_buffer("hidden", len(hidden), (down,))
            self.steps.append(GatedMatmul(normed, gate_name, up_name, out))
            self.steps.append(Matmul(out, self.weight(down.name, [_columns(down, hidden)]), "delta"))
        self.sum_up("delta", bool(hidden))

    def head(self) -> None:
        vocab = self.shard.vocab
        head = self.tensors["embedding" if self.spec.tied_embeddings else "head"]
        normed = self.norm("final_norm", feeds=(head,), add="delta", rows=Rows.LOGITS)
        own = None
        if vocab:
            self.buffer("logits", len(vocab), rows=Rows.LOGITS)
            all_rows = len(vocab) == self.spec.vocab_size
            name = self.weight(head.name if all_rows else "head_slice", [_rows(head, vocab)])
            self.steps.append(Matmul(normed, name, "logits"))
            own = self.candidate_buffers("" if self.shard.n_nodes == 1 else "own_", len(vocab))
            self.steps.append(TopCandidates("logits", *own, first_id=vocab.begin))
        if self.shard.n_nodes > 1:
            into = self.candidate_buffers("", self.spec.vocab_size) if self.shard.rank == 0 else None
            self.steps.append(GatherCandidates(own, into))

    def candidate_buffers(self, prefix: str, n_logits: int) -> tuple[str, str, str]:
        n_candidates = min(self.options.n_candidates, n_logits)
        return (
            self.buffer(prefix + "candidate_values", n_candidates, rows=Rows.LOGITS),
            self.buffer(prefix + "candidate_ids", n_candidates, BufferType.I32, Rows.LOGITS),
            self.buffer(prefix + "log_sum_exp", 1, rows=Rows.LOGITS),
        )

    def sum_up(self, buffer: str, contributes: bool) -> None:
        if self.shard.n_nodes > 1:
            self.steps.append(AllReduce(buffer, contributes))

    def norm(self, weight: str, feeds: tuple[TensorInfo, ...], add: str | None, rows: Rows = Rows.ALL) -> str:
        out = self.input_buffer("normed" if rows is Rows.ALL else "last_normed", self.spec.dim, feeds, rows)
        self.steps.append(RmsNorm("x", add, self.weight(weight), out, self.spec.norm_epsilon))
        return out

    def stacks(self, prefix: str, parts: list[TensorSlice]) -> list[Weight]:
        """Slices of one number format become one weight, others a weight each."""
        if len({self.tensors[part.tensor].float_type for part in parts}) == 1:
            return [self.weights[self.weight(prefix + "qkv", parts)]]
        return [self.weights[self.weight(part.tensor, [part])] for part in parts]

    def weight(self, name: str, parts: list[TensorSlice] | None = None) -> str:
        """Declares a weight: the slices stacked, or the whole tensor of that name."""
        if parts is None:
            tensor = self.tensors[name]
            parts = [_rows(tensor, Span(0, tensor.n_rows))]
        self.weights[name] = Weight(
            name=name,
            float_type=self.tensors[parts[0].tensor].float_type,
            n_rows=sum(part.row_end - part.row_begin for part in parts),
            n_columns=parts[0].column_end - parts[0].column_begin,
            parts=tuple(parts),
        )
        return name

    def buffer(self, name: str, width: int, type: BufferType = BufferType.F32, rows: Rows = Rows.ALL) -> str:
        self.buffers[name] = Buffer(name, width, type, rows)
        return name

    def input_buffer(self, name: str, width: int, feeds: tuple[TensorInfo, ...], rows: Rows = Rows.ALL) -> str:
        """A buffer that matmuls read: Q80 when asked for and all their weights are quantized, else f32.

        Layers of different number formats get buffers of different types under different names.
        """
        quantized = all(tensor.float_type.is_quantized for tensor in feeds)
        type = self.options.buffer_type if quantized else BufferType.F32
        return self.buffer(f"{name}_{type.value}", width, type, rows)


def _scaled(span: Span, factor: int) -> Span:
    return Span(span.begin * factor, span.end * factor)


def _rows(tensor: TensorInfo, rows: Span) -> TensorSlice:
    return TensorSlice(tensor.name, rows.begin, rows.end, 0, tensor.n_columns)


def _columns(tensor: TensorInfo, columns: Span) -> TensorSlice:
    return TensorSlice(tensor.name, 0, tensor.n_rows, columns.begin, columns.end)


def weight_types(graph: Graph) -> dict[FloatType, int]:
    """Bytes of weights by number format."""
    totals: dict[FloatType, int] = {}
    for weight in graph.weights:
        size = weight.n_rows * weight.float_type.row_bytes(weight.n_columns)
        totals[weight.float_type] = totals.get(weight.float_type, 0) + size
    return totals
