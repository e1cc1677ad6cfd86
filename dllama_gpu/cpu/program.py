"""A graph as a native op list over arrays that Python owns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.memory import Arena, zeroed
from dllama_gpu.cpu.weights import LoadedWeights
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, ExchangeHandler, check_prefix_copy
from dllama_gpu.graph.graph import (
    Activation,
    Attention,
    BufferType,
    CacheType,
    Embed,
    Exchange,
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    Graph,
    Matmul,
    Op,
    RmsNorm,
    RopeAngles,
    RopeStore,
    Rows,
    TopCandidates,
    TopExperts,
)
from dllama_gpu.model.spec import RopeStyle

_CACHE_TYPES = {
    CacheType.F16: _native.CacheType.F16,
    CacheType.Q80: _native.CacheType.Q80,
    CacheType.F32: _native.CacheType.F32,
}
_LANES = 16  # positions and head elements are stored in multiples of this
_DENSE_CACHE_BYTES = 32 << 20  # a KV cache up to this size is cleared in a moment, so it may have huge pages


class CpuProgram:
    """A compiled graph; see `dllama_gpu.graph.batch.Program`."""

    def __init__(self, graph: Graph, weights: LoadedWeights, pool: _native.ThreadPool, kernels: str) -> None:
        self._graph = graph
        self._weights = weights
        self._pool = pool
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._buffers: dict[str, _native.ActivationBuffer] = {}
        self._declared = {buffer.name: buffer for buffer in graph.buffers}
        self._n_experts = {weight.name: weight.n_experts for weight in graph.weights}
        self._caches: dict[str, _native.KvCache] = {}
        self._cache_parts: list[tuple[npt.NDArray[np.uint8], int, int]] = []
        self._attention_work: dict[tuple[int, int], _native.AttentionWork] = {}
        self._expert_work: dict[tuple[int, int, int], _native.ExpertWork] = {}
        # Whose rows the work is sorted by as emission goes on: the buffer of ids.
        self._sorted: dict[tuple[int, int, int], str] = {}
        self._program = _native.Program(
            pool,
            kernels,
            graph.max_rows,
            graph.max_logit_rows or graph.max_rows,
            graph.vocab_size,
            graph.n_slots,
            graph.seq_len,
        )
        self._op_names: list[str] = []
        self._add_buffers()
        self._add_caches()
        # Native ops [begin, end) and the exchange behind them.
        self._segments: list[tuple[int, int, Exchange | None]] = []
        for ops, exchange in graph.segments():
            begin = self._program.n_ops
            head: Matmul | None = None
            for i, op in enumerate(ops):
                if self._is_searched(op, *ops[i + 1 : i + 2]):
                    head = op  # the search runs it
                elif isinstance(op, TopCandidates):
                    self._emit_top_candidates(op, head)
                    head = None
                else:
                    _EMITTERS[type(op)](self, op)
                # Some ops take two native ones.
                self._op_names += [type(op).__name__] * (self._program.n_ops - len(self._op_names))
            self._segments.append((begin, self._program.n_ops, exchange))

    @property
    def graph(self) -> Graph:
        """What was compiled."""
        return self._graph

    @property
    def op_names(self) -> list[str]:
        """The graph op that each native op belongs to."""
        return self._op_names

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        """Computes one step; see `dllama_gpu.graph.batch.Program.run`."""
        step = self._step(batch)
        for begin, end, wanted in self._segments:
            self._program.run(step, begin, end)
            if wanted is not None:
                _handler(exchange)(wanted, batch)

    def run_timed(
        self, batch: Batch, seconds: npt.NDArray[np.float64], exchange: ExchangeHandler | None = None
    ) -> None:
        """The same; adds the seconds each native op took to `seconds` (len(op_names),), waiting included."""
        step = self._step(batch)
        for begin, end, wanted in self._segments:
            self._program.run_timed(step, begin, end, seconds)
            if wanted is not None:
                _handler(exchange)(wanted, batch)

    def weight_read_rate(self) -> float:
        """Bytes per second of a plain read loop over the matrices, where they lie, on the program's threads."""
        matrices = self._weights.matrices
        return _native.read_rate(self._pool, matrices[: len(matrices) // 8 * 8].view(np.uint64))

    def seconds_beside_weights(self, batch: Batch, n_times: int = 100) -> float:
        """What the ops of a step take that stream no weights, if nothing waits for memory.

        Each is run `n_times` in a row, so that what it needs is in the cache; the median of each, summed, with what
        several threads take to come together. Matmuls of experts count as streaming nothing. Buffers and the rows'
        place in the KV cache mean nothing afterwards.
        """
        step = self._step(batch)
        total = 0.0
        for op in range(self._program.n_ops):
            if self._program.streams_weights(op):
                continue
            seconds = np.zeros((n_times, self._program.n_ops))
            for each in seconds:
                self._program.run_timed(step, op, op + 1, each)
            total += float(np.median(seconds[:, op]))
        return total

    def _step(self, batch: Batch) -> _native.Step:
        """The batch for native code, which checks it itself: in Python that takes as long as some ops of a layer."""
        try:
            return self._program.step(batch.tokens, batch.slots, batch.positions, batch.logit_rows, batch.temperatures)
        except ValueError:
            batch.check(self._graph)  # says in a sentence what is wrong
            raise

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        """See `dllama_gpu.graph.batch.Program.buffer`. Raises ValueError for an unknown name or too many rows."""
        if name not in self._declared or not 0 <= n_rows <= self._graph.rows_of(self._declared[name]):
            raise ValueError(f"this program has no {n_rows} rows of a buffer {name}")
        if self._declared[name].type is BufferType.Q80:
            return _native.read_q80(self._buffers[name], n_rows)
        return self._arrays[name][:n_rows]

    def copy_prefix(self, source: int, target: int, n_positions: int) -> None:
        """See `dllama_gpu.graph.batch.PrefixCopier`. Raises ValueError for slots or positions that there are not."""
        check_prefix_copy(self._graph, source, target, n_positions)
        n_rounded = _round_up(n_positions)  # keys of 16 positions lie in one piece
        for part, n_kv_heads, seq_len in self._cache_parts:
            heads = part.reshape(self._graph.n_slots, n_kv_heads, seq_len, -1)
            heads[target, :, :n_rounded] = heads[source, :, :n_rounded]

    def _is_searched(self, op: Op, following: Op | None = None) -> TypeGuard[Matmul]:
        """Whether `op` is a matmul that fills a buffer through which the next op searches for candidates."""
        if not (isinstance(op, Matmul) and isinstance(following, TopCandidates) and op.out == following.logits):
            return False
        n_rows = next(weight.n_rows for weight in self._graph.weights if weight.name == op.weight)
        return n_rows == self._declared[op.out].width

    def _add_buffers(self) -> None:
        for buffer in self._graph.buffers:
            logits_only = buffer.rows is Rows.LOGITS
            max_rows = self._graph.rows_of(buffer)
            array: npt.NDArray[Any]
            if buffer.type is BufferType.Q80:
                array = zeroed(_native.q80_bytes(max_rows, buffer.width), f"the buffer {buffer.name}")
                self._buffers[buffer.name] = _native.q80_buffer(array, max_rows, buffer.width, logits_only)
            else:
                memory = zeroed(4 * max_rows * buffer.width, f"the buffer {buffer.name}")
                if buffer.type is BufferType.F32:
                    array = memory.view(np.float32).reshape(max_rows, buffer.width)
                    self._buffers[buffer.name] = _native.f32_buffer(array, logits_only)
                else:
                    array = memory.view(np.int32).reshape(max_rows, buffer.width)
                    self._buffers[buffer.name] = _native.i32_buffer(array, logits_only)
            self._arrays[buffer.name] = array

    def _add_caches(self) -> None:
        n_slots, seq_len = self._graph.n_slots, _round_up(self._graph.seq_len)
        shapes = [
            (_CACHE_TYPES[cache.type], n_slots, cache.n_kv_heads, seq_len, cache.head_dim)
            for cache in self._graph.caches
        ]
        sizes = [_native.kv_cache_bytes(*shape) for shape in shapes]
        # Huge pages would take a slot's whole memory, and the time to clear it, with its first token.
        n_bytes = 2 * sum(map(Arena.padded, sizes))
        arena = Arena(n_bytes, "the KV cache", is_sparse=n_bytes > _DENSE_CACHE_BYTES)
        for cache, shape, size in zip(self._graph.caches, shapes, sizes, strict=True):
            keys, values = (arena.take(size) for _ in range(2))
            self._arrays[f"{cache.name}.keys"], self._arrays[f"{cache.name}.values"] = keys, values
            for array in (keys, values):
                # The scales of Q80, one f32 for 32 elements, lie behind all elements.
                n_elements = size * 8 // 9 if cache.type is CacheType.Q80 else size
                parts = (array[:n_elements], array[n_elements:size])
                self._cache_parts += [(part, cache.n_kv_heads, seq_len) for part in parts if len(part)]
            self._caches[cache.name] = _native.KvCache(keys, values, *shape)

    def _emit_embed(self, op: Embed) -> None:
        self._program.add_embed(self._weights.rows[op.weight], self._buffers[op.out], op.scale)

    def _emit_rope_angles(self, op: RopeAngles) -> None:
        self._program.add_rope_angles(op.frequencies, self._buffers[op.out], op.scale)

    def _emit_rms_norm(self, op: RmsNorm) -> None:
        add = self._buffers[op.add] if op.add is not None else None
        weight = self._weights.vectors[op.weight]
        self._program.add_rms_norm(self._buffers[op.x], add, weight, self._buffers[op.out], op.epsilon)

    def _emit_matmul(self, op: Matmul) -> None:
        weight = self._weights.packed[op.weight]
        self._program.add_matmul(self._buffers[op.x], weight, self._buffers[op.out], op.out_column)

    def _emit_gated_matmul(self, op: GatedMatmul) -> None:
        gate, up = self._weights.packed[op.gate], self._weights.packed[op.up]
        gelu = op.activation is Activation.GELU_TANH
        self._program.add_gated_matmul(self._buffers[op.x], gate, up, self._buffers[op.out], gelu)

    def _emit_rope_store(self, op: RopeStore) -> None:
        self._program.add_rope_store(
            self._buffers[op.qkv],
            None if op.angles is None else self._buffers[op.angles],
            self._caches[op.cache],
            op.n_heads,
            op.style is RopeStyle.HALF_SPLIT,
            [self._weights.vectors[name] for name in op.biases or ()],
            [self._weights.vectors[name] for name in op.norms or ()],
            op.epsilon,
        )

    def _emit_attention(self, op: Attention) -> None:
        head_dim = self._buffers[op.out].width // op.n_heads
        key = (op.n_heads, _round_up(head_dim))
        if key not in self._attention_work:
            # Ops run one after the other, so all layers share the memory between the two halves of attention.
            self._attention_work[key] = _native.AttentionWork(self._graph.max_rows, *key, self._graph.seq_len)
        self._program.add_attention(
            self._buffers[op.qkv],
            self._caches[op.cache],
            self._buffers[op.out],
            op.n_heads,
            op.group,
            op.first_head,
            op.window,
            op.scale,
            self._attention_work[key],
        )

    def _emit_top_experts(self, op: TopExperts) -> None:
        logits, ids, weights = self._buffers[op.logits], self._buffers[op.ids], self._buffers[op.weights]
        self._program.add_top_experts(logits, ids, weights, op.normalize)
        self._sorted = {key: name for key, name in self._sorted.items() if name != op.ids}

    def _emit_expert_gated_matmul(self, op: ExpertGatedMatmul) -> None:
        work = self._sorted_work(op.ids, op.first_expert, op.gate)
        gate, up = self._weights.experts[op.gate], self._weights.experts[op.up]
        gelu = op.activation is Activation.GELU_TANH
        self._program.add_expert_gated_matmul(self._buffers[op.x], gate, up, self._buffers[op.out], gelu, work)

    def _emit_expert_matmul(self, op: ExpertMatmul) -> None:
        work = self._sorted_work(op.ids, op.first_expert, op.down)
        x, weights, out = self._buffers[op.x], self._buffers[op.weights], self._buffers[op.out]
        self._program.add_expert_matmul(x, weights, self._weights.experts[op.down], out, work)

    def _sorted_work(self, ids: str, first_expert: int, weight: str) -> _native.ExpertWork:
        """The memory in which rows are sorted by expert, shared by all layers; sorts them where that is not done."""
        key = (self._buffers[ids].width, first_expert, self._n_experts[weight])
        if key not in self._expert_work:
            self._expert_work[key] = _native.ExpertWork(self._graph.max_rows, *key)
        if self._sorted.get(key) != ids:
            self._program.add_expert_sort(self._buffers[ids], self._expert_work[key])
            self._sorted[key] = ids
        return self._expert_work[key]

    def _emit_top_candidates(self, op: TopCandidates, head: Matmul | None) -> None:
        logits, values = self._buffers[op.logits], self._buffers[op.values]
        ids, log_sum_exp = self._buffers[op.ids], self._buffers[op.log_sum_exp]
        x = None if head is None else self._buffers[head.x]
        weight = None if head is None else self._weights.packed[head.weight]
        self._program.add_top_candidates(logits, values, ids, log_sum_exp, op.first_id, x, weight)


_EMITTERS: dict[type[Op], Callable[[CpuProgram, Any], None]] = {
    Embed: CpuProgram._emit_embed,
    RopeAngles: CpuProgram._emit_rope_angles,
    RmsNorm: CpuProgram._emit_rms_norm,
    Matmul: CpuProgram._emit_matmul,
    GatedMatmul: CpuProgram._emit_gated_matmul,
    RopeStore: CpuProgram._emit_rope_store,
    Attention: CpuProgram._emit_attention,
    TopExperts: CpuProgram._emit_top_experts,
    ExpertGatedMatmul: CpuProgram._emit_expert_gated_matmul,
    ExpertMatmul: CpuProgram._emit_expert_matmul,
}


def _handler(exchange: ExchangeHandler | None) -> ExchangeHandler:
    if exchange is None:
        raise DllamaError("this graph is one node's share of a model; it runs only within a cluster")
    return exchange


def _round_up(n: int) -> int:
    return (n + _LANES - 1) // _LANES * _LANES


def check_head_dim(graph: Graph) -> None:
    """Raises DllamaError for head sizes that the native attention has no room for."""
    for cache in graph.caches:
        if cache.head_dim % 2 or cache.head_dim > 512:
            raise DllamaError(f"the CPU device needs an even head_dim of at most 512, not {cache.head_dim}")
