"""One node's share of one model as plain frozen data: buffers, caches, weights and an ordered list of ops.

A graph knows nothing of devices, files or sockets. A builder (one file an architecture) makes it, `check` proves
it sound, a device compiles it into a `Program`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import RopeStyle


class BufferType(Enum):
    """How a device keeps the numbers of a buffer.

    Q80 is blocks of 32 int8 with one scale; how blocks are laid out in memory is the device's own affair.
    """

    F32 = "f32"
    Q80 = "q80"
    I32 = "i32"


class CacheType(Enum):
    """How keys and values are kept. Q80 is blocks of 32 along a head, int8 with one f16 scale."""

    F16 = "f16"
    Q80 = "q80"
    F32 = "f32"

    @property
    def float_type(self) -> FloatType:
        """The same as a number format."""
        return FloatType(self.value)


class Activation(Enum):
    """What a feed-forward part does to its gate: x·sigmoid(x), or GELU in its tanh approximation.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
    """

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


class Rows(Enum):
    """Which rows of a batch a buffer holds."""

    ALL = "all"
    LOGITS = "logits"
    """Only the rows that want logits, compacted."""


@dataclass(frozen=True)
class Buffer:
    """Activations: (rows, width)."""

    name: str
    width: int
    type: BufferType = BufferType.F32
    rows: Rows = Rows.ALL


@dataclass(frozen=True)
class KvCache:
    """Keys and values of one layer: twice (n_slots, n_kv_heads, seq_len, head_dim) in `type`."""

    name: str
    n_kv_heads: int
    head_dim: int
    type: CacheType = CacheType.F16

    @property
    def position_bytes(self) -> int:
        """Key and value of one position of one slot."""
        return 2 * self.n_kv_heads * self.type.float_type.row_bytes(self.head_dim)


@dataclass(frozen=True)
class TensorSlice:
    """A rectangle of a stored tensor: rows [row_begin, row_end), columns [column_begin, column_end).

    Columns of quantized tensors start and end at whole blocks. A vector is one row.
    """

    tensor: str
    row_begin: int
    row_end: int
    column_begin: int
    column_end: int


@dataclass(frozen=True)
class Weight:
    """A matrix (n_rows, n_columns) put together by stacking slices of stored tensors on top of each other.

    With `n_experts` it is that many matrices of n_rows / n_experts rows each, every one from parts of its own.
    """

    name: str
    float_type: FloatType
    n_rows: int
    n_columns: int
    parts: tuple[TensorSlice, ...]
    n_experts: int = 1


@dataclass(frozen=True)
class Embed:
    """out[r] = weight[token of row r] · scale; out (rows, dim) f32, weight (vocab_size, dim)."""

    weight: str
    out: str
    scale: float = 1.0


@dataclass(frozen=True)
class RopeAngles:
    """out[r] = cos(position·f)·scale for every f in `frequencies`, then sin(position·f)·scale.

    out (rows, head_dim) f32.
    """

    frequencies: tuple[float, ...]
    out: str
    scale: float = 1.0


@dataclass(frozen=True)
class RmsNorm:
    """x[r] += add[r]; out[r] = x[r] / sqrt(mean(x[r]²) + epsilon) · weight.

    x, add (rows, dim) f32; weight (1, dim) f32; out (rows, dim) f32 or Q80. When `out` holds only the rows that want
    logits, only those rows are computed.
    """

    x: str
    add: str | None
    weight: str
    out: str
    epsilon: float


@dataclass(frozen=True)
class Matmul:
    """out[:, out_column : out_column + weight.n_rows] = x · weightᵀ; x (rows, n_columns) f32 or Q80, out f32."""

    x: str
    weight: str
    out: str
    out_column: int = 0


@dataclass(frozen=True)
class GatedMatmul:
    """out = activation(x · gateᵀ) ∘ (x · upᵀ), SwiGLU or GeGLU; gate, up (hidden, dim); out (rows, hidden) f32 or Q80.

    Source: Shazeer, "GLU Variants Improve Transformer" (2020).
    """

    x: str
    gate: str
    up: str
    out: str
    activation: Activation = Activation.SILU


@dataclass(frozen=True)
class RopeStore:
    """Rotates queries and keys by their positions and writes keys and values to the cache at (slot, position).

    qkv (rows, (n_heads + 2·n_kv_heads)·head_dim) f32 holds q, k, v side by side; q is rotated in place. Before that,
    `biases` of q, k and v, (1, their width) f32, are added, and every head of q and of k is divided by its root mean
    square (with `epsilon`) and multiplied by its one of `norms`, (1, head_dim) f32. Without `angles` nothing is
    rotated. Source: Su et al., "RoFormer" (2021).
    """

    qkv: str
    angles: str | None
    cache: str
    n_heads: int
    style: RopeStyle
    biases: tuple[str, str, str] | None = None
    norms: tuple[str, str] | None = None
    epsilon: float = 0.0


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention of the rotated queries in `qkv` over positions 0..position of the row's slot.

    out (rows, n_heads·head_dim) f32 or Q80 = softmax(q·kᵀ·scale)·v, where query head h reads
    KV head (h + first_head) // group. `first_head` is not 0 where a node's query heads begin inside a group. With a
    `window` only that many positions are seen, the row's own being the last of them.
    """

    qkv: str
    cache: str
    out: str
    n_heads: int
    group: int
    scale: float
    first_head: int = 0
    window: int = 0


@dataclass(frozen=True)
class TopExperts:
    """The router's choice: p = softmax(logits) over all experts, of which each row keeps the k largest.

    logits (rows, n_experts) f32; ids (rows, k) i32, the largest first (lowest id first among equals);
    weights (rows, k) f32, their p, with `normalize` divided by the sum of the k. Ids are in range whatever the logits.
    Source: Shazeer et al., "Outrageously Large Neural Networks" (2017).
    """

    logits: str
    ids: str
    weights: str
    normalize: bool


@dataclass(frozen=True)
class ExpertGatedMatmul:
    """GatedMatmul of each row with the experts that it has chosen.

    x (rows, dim) f32 or Q80; ids (rows, k) i32; gate, up: as many experts of (hidden, dim), expert `first_expert` of
    the layer first; out (rows, k·hidden) f32 or Q80, whose part j of row r belongs to expert ids[r, j]. What belongs to
    experts that the weights do not hold is not computed. How `out` lies in memory is the device's own affair; only
    ExpertMatmul reads it.
    """

    x: str
    ids: str
    gate: str
    up: str
    out: str
    first_expert: int = 0
    activation: Activation = Activation.SILU


@dataclass(frozen=True)
class ExpertMatmul:
    """out[r] = sum over j, in order, of weights[r, j] · (x[r, part j] · down[ids[r, j]]ᵀ).

    x (rows, k·hidden) as ExpertGatedMatmul left it, for the same `ids`; weights (rows, k) f32; down: experts of
    (dim, hidden), expert `first_expert` first; out (rows, dim) f32. Experts that `down` does not hold add nothing.
    """

    x: str
    ids: str
    weights: str
    down: str
    out: str
    first_expert: int = 0


@dataclass(frozen=True)
class TopCandidates:
    """The k largest logits of each row, largest first (lowest id first among equals), and the row's log-sum-exp.

    logits (rows, vocab) f32; values (rows, k) f32; ids (rows, k) i32, counted from `first_id`;
    log_sum_exp (rows, 1) f32 of logits / temperature of that row.
    """

    logits: str
    values: str
    ids: str
    log_sum_exp: str
    first_id: int = 0


@dataclass(frozen=True)
class AllReduce:
    """Adds the nodes' partial sums of `buffer` (rows, width) f32, in rank order; every node ends with the same bits.

    A node with `contributes` False has computed nothing for it and only receives. What crosses the network, a node's
    own part included, is rounded to the plan's wire format first.
    """

    buffer: str
    contributes: bool = True


@dataclass(frozen=True)
class Broadcast:
    """Copies `buffer` (rows, width) f32 from rank 0 to all other nodes, unrounded."""

    buffer: str


@dataclass(frozen=True)
class GatherCandidates:
    """Brings every node's candidates of its slice of the vocabulary to rank 0, which merges them into `into`.

    Both are (values, ids, log_sum_exp) as TopCandidates has them. A node without a slice has no `own`; only rank 0 has
    `into`, which then holds what one node looking at all logits would have found.
    """

    own: tuple[str, str, str] | None
    into: tuple[str, str, str] | None


Op = (
    Embed
    | RopeAngles
    | RmsNorm
    | Matmul
    | GatedMatmul
    | RopeStore
    | Attention
    | TopExperts
    | ExpertGatedMatmul
    | ExpertMatmul
    | TopCandidates
)
Exchange = AllReduce | Broadcast | GatherCandidates
Step = Op | Exchange


@dataclass(frozen=True)
class Graph:
    """Everything a device must know to compute one node's share of a step.

    `max_rows` bounds the rows of a batch and `max_logit_rows` those of them that want logits (None: all may);
    `n_slots` and `seq_len` size the KV caches.
    """

    buffers: tuple[Buffer, ...]
    caches: tuple[KvCache, ...]
    weights: tuple[Weight, ...]
    steps: tuple[Step, ...]
    vocab_size: int
    max_rows: int
    n_slots: int
    seq_len: int
    max_logit_rows: int | None = None

    def rows_of(self, buffer: Buffer) -> int:
        """Rows that a buffer must have room for."""
        if buffer.rows is Rows.ALL or self.max_logit_rows is None:
            return self.max_rows
        return self.max_logit_rows

    def segments(self) -> tuple[tuple[tuple[Op, ...], Exchange | None], ...]:
        """The steps cut at the exchanges: ops that run without a stop, and the exchange behind them (or None)."""
        segments: list[tuple[tuple[Op, ...], Exchange | None]] = []
        ops: list[Op] = []
        for step in self.steps:
            if isinstance(step, Exchange):
                segments.append((tuple(ops), step))
                ops = []
            else:
                ops.append(step)
        if ops or not segments:
            segments.append((tuple(ops), None))
        return tuple(segments)

    def kv_cache_bytes(self) -> int:
        """Bytes of all KV caches."""
        return sum(self.n_slots * self.seq_len * cache.position_bytes for cache in self.caches)

    def weight_types(self) -> dict[FloatType, int]:
        """Bytes of weights by number format."""
        totals: dict[FloatType, int] = {}
        for weight in self.weights:
            size = weight.n_rows * weight.float_type.row_bytes(weight.n_columns)
            totals[weight.float_type] = totals.get(weight.float_type, 0) + size
        return totals

    def weight_bytes(self) -> int:
        """Bytes of all weights in their own types."""
        return sum(w.n_rows * w.float_type.row_bytes(w.n_columns) for w in self.weights)
