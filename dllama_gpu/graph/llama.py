"""Graph of the Llama architecture (Llama 2 and 3, Mistral, SmolLM2 and others of the same arithmetic)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dllama_gpu.graph.graph import (
    Attention,
    Buffer,
    BufferType,
    Embed,
    GatedMatmul,
    Graph,
    KvCache,
    Matmul,
    Op,
    RmsNorm,
    RopeAngles,
    RopeStore,
    Rows,
    TensorSlice,
    TopCandidates,
    Weight,
)
from dllama_gpu.graph.rope import rope_frequencies
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec


@dataclass(frozen=True)
class GraphOptions:
    """Sizes and number formats that are the user's choice and not the model's."""

    max_rows: int = 128
    """Rows a step may have: the prefill chunk."""
    n_slots: int = 1
    """Sequences kept in the KV cache."""
    seq_len: int = 2048
    """Positions a slot can hold."""
    buffer_type: BufferType = BufferType.Q80
    """Input format of matmuls whose weights are quantized; other matmuls read f32."""
    n_candidates: int = 64
    """Best tokens found per row that wants logits."""


def build_llama(spec: ModelSpec, tensors: Mapping[str, TensorInfo], options: GraphOptions) -> Graph:
    """The whole model on one node.

    `tensors` (canonical names) tells each tensor's number format; tensors of one format that read the same input
    are stacked into one weight.
    """
    return _LlamaBuilder(spec, tensors, options).build()


class _LlamaBuilder:
    def __init__(self, spec: ModelSpec, tensors: Mapping[str, TensorInfo], options: GraphOptions) -> None:
        self.spec = spec
        self.tensors = tensors
        self.options = options
        self.weights: dict[str, Weight] = {}
        self.buffers: dict[str, Buffer] = {}
        self.ops: list[Op] = []
        self.caches: list[KvCache] = []

    def build(self) -> Graph:
        spec = self.spec
        self.buffer("x", spec.dim)
        self.buffer("angles", spec.head_dim)
        self.buffer("qkv", spec.q_dim + 2 * spec.kv_dim)
        self.buffer("delta", spec.dim)
        self.ops.append(Embed(self.weight("embedding"), "x"))
        self.ops.append(RopeAngles(rope_frequencies(spec), "angles"))
        for layer in range(spec.n_layers):
            self.attention_block(layer)
            self.feed_forward_block(layer)
        self.head()
        return Graph(
            buffers=tuple(self.buffers.values()),
            caches=tuple(self.caches),
            weights=tuple(self.weights.values()),
            ops=tuple(self.ops),
            vocab_size=spec.vocab_size,
            max_rows=self.options.max_rows,
            n_slots=self.options.n_slots,
            seq_len=self.options.seq_len,
        )

    def attention_block(self, layer: int) -> None:
        spec, prefix = self.spec, f"layers.{layer}."
        q, k, v, o = (self.tensors[prefix + name] for name in ("q", "k", "v", "o"))
        normed = self.norm(prefix + "attention_norm", feeds=(q, k, v), add=None if layer == 0 else "delta")
        column = 0
        for name, stack in self.stacks(prefix, (q, k, v)):
            self.ops.append(Matmul(normed, name, "qkv", column))
            column += sum(tensor.n_rows for tensor in stack)
        cache = KvCache(f"kv.{layer}", spec.n_kv_heads, spec.head_dim)
        self.caches.append(cache)
        self.ops.append(RopeStore("qkv", "angles", cache.name, spec.n_heads, spec.rope_style))
        attended = self.input_buffer("attended", spec.q_dim, (o,))
        scale = 1.0 / math.sqrt(spec.head_dim)
        self.ops.append(Attention("qkv", cache.name, attended, spec.n_heads, scale))
        self.ops.append(Matmul(attended, self.weight(o.name), "delta"))

    def feed_forward_block(self, layer: int) -> None:
        prefix = f"layers.{layer}."
        gate, up, down = (self.tensors[prefix + name] for name in ("gate", "up", "down"))
        normed = self.norm(prefix + "ffn_norm", feeds=(gate, up), add="delta")
        hidden = self.input_buffer("hidden", self.spec.hidden_dim, (down,))
        self.ops.append(GatedMatmul(normed, self.weight(gate.name), self.weight(up.name), hidden))
        self.ops.append(Matmul(hidden, self.weight(down.name), "delta"))

    def head(self) -> None:
        spec, n_candidates = self.spec, min(self.options.n_candidates, self.spec.vocab_size)
        head = self.tensors["embedding" if spec.tied_embeddings else "head"]
        normed = self.norm("final_norm", feeds=(head,), add="delta", rows=Rows.LOGITS)
        self.buffer("logits", spec.vocab_size, rows=Rows.LOGITS)
        self.ops.append(Matmul(normed, self.weight(head.name), "logits"))
        self.buffer("candidate_values", n_candidates, rows=Rows.LOGITS)
        self.buffer("candidate_ids", n_candidates, BufferType.I32, Rows.LOGITS)
        self.buffer("log_sum_exp", 1, rows=Rows.LOGITS)
        self.ops.append(TopCandidates("logits", "candidate_values", "candidate_ids", "log_sum_exp"))

    def norm(self, weight: str, feeds: tuple[TensorInfo, ...], add: str | None, rows: Rows = Rows.ALL) -> str:
        out = self.input_buffer("normed" if rows is Rows.ALL else "last_normed", self.spec.dim, feeds, rows)
        self.ops.append(RmsNorm("x", add, self.weight(weight), out, self.spec.norm_epsilon))
        return out

    def stacks(self, prefix: str, tensors: tuple[TensorInfo, ...]) -> list[tuple[str, tuple[TensorInfo, ...]]]:
        """Neighbouring tensors of one number format become one weight."""
        if len({tensor.float_type for tensor in tensors}) == 1:
            return [(self.weight(prefix + "qkv", tensors), tensors)]
        return [(self.weight(tensor.name), (tensor,)) for tensor in tensors]

    def weight(self, name: str, tensors: tuple[TensorInfo, ...] = ()) -> str:
        parts = tensors or (self.tensors[name],)
        self.weights[name] = Weight(
            name=name,
            float_type=parts[0].float_type,
            n_rows=sum(part.n_rows for part in parts),
            n_columns=parts[0].n_columns,
            parts=tuple(TensorSlice(part.name, 0, part.n_rows, 0, part.n_columns) for part in parts),
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


def weight_types(graph: Graph) -> dict[FloatType, int]:
    """Bytes of weights by number format."""
    totals: dict[FloatType, int] = {}
    for weight in graph.weights:
        size = weight.n_rows * weight.float_type.row_bytes(weight.n_columns)
        totals[weight.float_type] = totals.get(weight.float_type, 0) + size
    return totals
