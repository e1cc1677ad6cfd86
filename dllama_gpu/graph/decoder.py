"""What the graphs of all decoder-only transformers share; one file an architecture says what is different there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import (
    Activation,
    AllReduce,
    Attention,
    Broadcast,
    Buffer,
    BufferType,
    CacheType,
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
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.rope import attention_factor, rope_frequencies
from dllama_gpu.graph.shard import BLOCK, Shard, Span, whole
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec


class DecoderBuilder:
    """Builds one node's graph of a pre-norm decoder with grouped-query attention and a gated feed-forward part.

    `shard` (default: all of it, on one node) is what the node computes; `tensors` (canonical names) tells each tensor's
    number format: tensors of one format that read the same input are stacked into one weight. Of `layers` (default:
    all) only these are built, for a planner that needs one of each kind.

    An architecture overrides what stands between here and `embedding`. Raises DllamaError for heads that do not suit
    the number format of the KV cache.
    """

    activation = Activation.SILU

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, TensorInfo],
        options: GraphOptions,
        shard: Shard | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        if options.cache_type is CacheType.Q80 and spec.head_dim % BLOCK:
            raise DllamaError(
                f"a KV cache in q80 needs heads of a multiple of {BLOCK} elements, but this model's have "
                f"{spec.head_dim}; use --kv-cache-type f16"
            )
        self.spec = spec
        self.tensors = tensors
        self.options = options
        self.shard = shard or whole(spec)
        self.layers = range(spec.n_layers) if layers is None else layers
        self.kv_heads = self.shard.kv_heads(spec)
        self.weights: dict[str, Weight] = {}
        self.buffers: dict[str, Buffer] = {}
        self.steps: list[Step] = []
        self.caches: list[KvCache] = []
        # What the next norm adds to the residual stream first.
        self.added: str | None = None

    def build(self) -> Graph:
        """The graph."""
        self.embedding()
        for layer in self.layers:
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

    # What architectures change.

    def embedding_scale(self) -> float:
        """What embeddings are multiplied by."""
        return 1.0

    def rotations(self) -> None:
        """Adds the ops that compute the angles of all layers."""
        self.rotation("angles", rope_frequencies(self.spec), attention_factor(self.spec))

    def angles(self, layer: int) -> str | None:
        """The buffer with the angles by which `layer` rotates, None where it does not."""
        return "angles"

    def biases(self, prefix: str) -> tuple[str, str, str] | None:
        """Weights that are added to queries, keys and values of the layer whose tensors begin with `prefix`."""
        return None

    def head_norms(self, prefix: str) -> tuple[str, str] | None:
        """Weights that every head of queries and of keys is normed with."""
        return None

    def feed_forward(self, layer: int) -> None:
        """Computes this node's part of what the layer's feed-forward part adds, into `delta`."""
        hidden, prefix = self.shard.hidden, f"layers.{layer}."
        gate, up, down = (self.tensors[prefix + name] for name in ("gate", "up", "down"))
        normed = self.norm(prefix + "ffn_norm", feeds=(gate, up))
        if hidden:
            gate_name, up_name = (self.weight(tensor.name, [rows_of(tensor, hidden)]) for tensor in (gate, up))
            out = self.input_buffer("hidden", len(hidden), (down,))
            self.steps.append(GatedMatmul(normed, gate_name, up_name, out, self.activation))
            self.steps.append(Matmul(out, self.weight(down.name, [columns_of(down, hidden)]), "delta"))

    def finish_block(self, post_norm: str, contributes: bool) -> None:
        """Adds up the nodes' parts in `delta`, for the next norm to take in; `post_norm` is for those who norm that."""
        if self.shard.n_nodes > 1:
            self.steps.append(AllReduce("delta", contributes))
        self.added = "delta"

    # What they share.

    def embedding(self) -> None:
        """Rank 0 looks up the rows' tokens for all nodes."""
        self.buffer("x", self.spec.dim)
        self.buffer("delta", self.spec.dim)
        if self.shard.rank == 0:
            self.steps.append(Embed(self.weight("embedding"), "x", self.embedding_scale()))
        if self.shard.n_nodes > 1:
            self.steps.append(Broadcast("x"))
        if self.shard.heads:
            self.rotations()

    def rotation(self, name: str, frequencies: tuple[float, ...], scale: float = 1.0) -> None:
        """Adds a buffer of angles."""
        self.steps.append(RopeAngles(frequencies, self.buffer(name, self.spec.head_dim), scale))

    def attention_block(self, layer: int) -> None:
        """Attention with the node's heads, added to the residual stream."""
        spec, heads, kv_heads, prefix = self.spec, self.shard.heads, self.kv_heads, f"layers.{layer}."
        q, k, v, o = (self.tensors[prefix + name] for name in ("q", "k", "v", "o"))
        normed = self.norm(prefix + "attention_norm", feeds=(q, k, v))
        if heads:
            q_rows, kv_rows = scaled(heads, spec.head_dim), scaled(kv_heads, spec.head_dim)
            self.buffer("qkv", len(q_rows) + 2 * len(kv_rows))
            parts = [rows_of(q, q_rows), rows_of(k, kv_rows), rows_of(v, kv_rows)]
            column = 0
            for weight in self.stacks(prefix, parts):
                self.steps.append(Matmul(normed, weight.name, "qkv", column))
                column += weight.n_rows
            cache = KvCache(f"kv.{layer}", len(kv_heads), spec.head_dim, self.options.cache_type)
            self.caches.append(cache)
            self.steps.append(
                RopeStore(
                    qkv="qkv",
                    angles=self.angles(layer),
                    cache=cache.name,
                    n_heads=len(heads),
                    style=spec.rope_style,
                    biases=self.biases(prefix),
                    norms=self.head_norms(prefix),
                    epsilon=spec.norm_epsilon,
                )
            )
            attended = self.input_buffer("attended", len(q_rows), (o,))
            group = spec.n_heads // spec.n_kv_heads
            first = heads.begin - kv_heads.begin * group
            scale = spec.attention_scale or 1.0 / math.sqrt(spec.head_dim)
            window = spec.window(layer)
            self.steps.append(Attention("qkv", cache.name, attended, len(heads), group, scale, first, window))
            self.steps.append(Matmul(attended, self.weight(o.name, [columns_of(o, q_rows)]), "delta"))
        self.finish_block(prefix + "post_attention_norm", bool(heads))

    def feed_forward_block(self, layer: int) -> None:
        """The feed-forward part, added to the residual stream."""
        self.feed_forward(layer)
        self.finish_block(f"layers.{layer}.post_ffn_norm", self.shard.has_feed_forward)

    def head(self) -> None:
        """Logits of the node's part of the vocabulary, and the best tokens of all of it on rank 0."""
        vocab = self.shard.vocab
        head = self.tensors["embedding" if self.spec.tied_embeddings else "head"]
        normed = self.norm("final_norm", feeds=(head,), rows=Rows.LOGITS)
        own = None
        if vocab:
            self.buffer("logits", len(vocab), rows=Rows.LOGITS)
            all_rows = len(vocab) == self.spec.vocab_size
            name = self.weight(head.name if all_rows else "head_slice", [rows_of(head, vocab)])
            self.steps.append(Matmul(normed, name, "logits"))
            own = self.candidate_buffers("" if self.shard.n_nodes == 1 else "own_", len(vocab))
            self.steps.append(TopCandidates("logits", *own, first_id=vocab.begin))
        if self.shard.n_nodes > 1:
            into = self.candidate_buffers("", self.spec.vocab_size) if self.shard.rank == 0 else None
            self.steps.append(GatherCandidates(own, into))

    def candidate_buffers(self, prefix: str, n_logits: int) -> tuple[str, str, str]:
        """Values, ids and log-sum-exp; see TopCandidates."""
        n_candidates = min(self.options.n_candidates, n_logits)
        return (
            self.buffer(prefix + "candidate_values", n_candidates, rows=Rows.LOGITS),
            self.buffer(prefix + "candidate_ids", n_candidates, BufferType.I32, Rows.LOGITS),
            self.buffer(prefix + "log_sum_exp", 1, rows=Rows.LOGITS),
        )

    def norm(self, weight: str, feeds: tuple[TensorInfo, ...], rows: Rows = Rows.ALL) -> str:
        """Takes what is to be added into the residual stream, and norms it for matmuls with `feeds`."""
        out = self.input_buffer("normed" if rows is Rows.ALL else "last_normed", self.spec.dim, feeds, rows)
        self.steps.append(RmsNorm("x", self.added, self.weight(weight), out, self.spec.norm_epsilon))
        self.added = None
        return out

    def stacks(self, prefix: str, parts: list[TensorSlice]) -> list[Weight]:
        """Slices of one number format become one weight, others a weight each."""
        if len({self.tensors[part.tensor].float_type for part in parts}) == 1:
            return [self.weights[self.weight(prefix + "qkv", parts)]]
        return [self.weights[self.weight(part.tensor, [part])] for part in parts]

    def weight(self, name: str, parts: list[TensorSlice] | None = None, n_experts: int = 1) -> str:
        """Declares a weight: the slices stacked, or the whole tensor of that name."""
        if parts is None:
            tensor = self.tensors[name]
            parts = [rows_of(tensor, Span(0, tensor.n_rows))]
        self.weights[name] = Weight(
            name=name,
            float_type=self.tensors[parts[0].tensor].float_type,
            n_rows=sum(part.row_end - part.row_begin for part in parts),
            n_columns=parts[0].column_end - parts[0].column_begin,
            parts=tuple(parts),
            n_experts=n_experts,
        )
        return name

    def buffer(self, name: str, width: int, type: BufferType = BufferType.F32, rows: Rows = Rows.ALL) -> str:
        """Declares a buffer and gives its name back."""
        self.buffers[name] = Buffer(name, width, type, rows)
        return name

    def input_buffer(self, name: str, width: int, feeds: tuple[TensorInfo, ...], rows: Rows = Rows.ALL) -> str:
        """A buffer that matmuls read: Q80 when asked for and all their weights are quantized, else f32.

        Layers of different number formats get buffers of different types under different names.
        """
        quantized = all(tensor.float_type.is_quantized for tensor in feeds)
        type = self.options.buffer_type if quantized else BufferType.F32
        return self.buffer(f"{name}_{type.value}", width, type, rows)


def scaled(span: Span, factor: int) -> Span:
    """The range of elements that a range of heads covers."""
    return Span(span.begin * factor, span.end * factor)


def rows_of(tensor: TensorInfo, rows: Span) -> TensorSlice:
    """Whole rows of a tensor."""
    return TensorSlice(tensor.name, rows.begin, rows.end, 0, tensor.n_columns)


def columns_of(tensor: TensorInfo, columns: Span) -> TensorSlice:
    """Some columns of all rows of a tensor; elements of a vector."""
    return TensorSlice(tensor.name, 0, tensor.n_rows, columns.begin, columns.end)
