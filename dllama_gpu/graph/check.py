"""Proof that every op of a graph stays inside its buffers, before any device touches it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import (
    AllReduce,
    Attention,
    Broadcast,
    Buffer,
    BufferType,
    CacheType,
    Embed,
    ExpertGatedMatmul,
    ExpertMatmul,
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
    TopCandidates,
    TopExperts,
    Weight,
)
from dllama_gpu.model.float_type import FloatType

_MAX_SIZE = 2**31 - 1


def check(graph: Graph) -> None:
    """Raises DllamaError for a graph that no device may run.

    Names are unique and known, shapes fit, number formats can meet, and nothing is read before it is written.
    """
    _Checker(graph).check()


class _Checker:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.buffers = {buffer.name: buffer for buffer in graph.buffers}
        self.caches = {cache.name: cache for cache in graph.caches}
        self.weights = {weight.name: weight for weight in graph.weights}
        self.written: set[str] = set()
        self.filled: set[str] = set()
        # Experts that ids choose among, and whose ids and experts a buffer between their two matmuls belongs to.
        self.routed: dict[str, int] = {}
        self.expert_outputs: dict[str, tuple[str, int, int]] = {}
        self.where = "the graph"

    def check(self) -> None:
        graph = self.graph
        for what, names in (
            ("buffer", [b.name for b in graph.buffers]),
            ("cache", [c.name for c in graph.caches]),
            ("weight", [w.name for w in graph.weights]),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            self.require(not twice, f"{what} {twice[:1]} is declared twice")
        self.sizes(("max_rows", graph.max_rows), ("n_slots", graph.n_slots), ("seq_len", graph.seq_len))
        self.sizes(("vocab_size", graph.vocab_size))
        if graph.max_logit_rows is not None:
            fits = 0 < graph.max_logit_rows <= graph.max_rows
            self.require(fits, f"has max_logit_rows = {graph.max_logit_rows}; it must be from 1 to {graph.max_rows}")
        for buffer in graph.buffers:
            self.buffer_shape(buffer)
        for cache in graph.caches:
            self.cache_shape(cache)
        for weight in graph.weights:
            self.weight_shape(weight)
        for number, step in enumerate(graph.steps):
            self.where = f"step {number} ({type(step).__name__})"
            self.require(type(step) in _CHECKS, "is of an unknown kind")
            _CHECKS[type(step)](self, step)

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise DllamaError(f"unsound graph: {self.where} {message}")

    def sizes(self, *named: tuple[str, int]) -> None:
        for name, size in named:
            self.require(0 < size <= _MAX_SIZE, f"has {name} = {size}; it must be from 1 to {_MAX_SIZE}")

    def buffer_shape(self, buffer: Buffer) -> None:
        self.sizes((f"{buffer.name}.width", buffer.width))
        blocks = buffer.type is not BufferType.Q80 or buffer.width % 32 == 0
        self.require(blocks, f"has a Q80 buffer {buffer.name} of width {buffer.width}, no multiple of 32")

    def cache_shape(self, cache: KvCache) -> None:
        self.sizes((f"{cache.name}.n_kv_heads", cache.n_kv_heads), (f"{cache.name}.head_dim", cache.head_dim))
        blocks = cache.type is not CacheType.Q80 or cache.head_dim % 32 == 0
        self.require(blocks, f"has a Q80 cache {cache.name} of head_dim {cache.head_dim}, no multiple of 32")

    def weight_shape(self, weight: Weight) -> None:
        self.sizes((f"{weight.name}.n_rows", weight.n_rows), (f"{weight.name}.n_columns", weight.n_columns))
        block = weight.float_type.block_size
        rows = 0
        for part in weight.parts:
            inside = 0 <= part.row_begin < part.row_end and 0 <= part.column_begin < part.column_end
            whole = part.column_begin % block == 0 and part.column_end % block == 0
            wide = part.column_end - part.column_begin == weight.n_columns
            self.require(inside and whole and wide, f"has an impossible slice of {part.tensor} in {weight.name}")
            rows += part.row_end - part.row_begin
        self.require(rows == weight.n_rows, f"has {rows} rows in the parts of {weight.name}, not {weight.n_rows}")
        self.sizes((f"{weight.name}.n_experts", weight.n_experts))
        if weight.n_experts > 1:
            self.experts_shape(weight)

    def experts_shape(self, weight: Weight) -> None:
        """Every expert is made of parts of its own."""
        self.require(weight.n_rows % weight.n_experts == 0, f"cannot cut {weight.name} into {weight.n_experts} experts")
        each, ends, row = weight.n_rows // weight.n_experts, set(), 0
        for part in weight.parts:
            row += part.row_end - part.row_begin
            ends.add(row)
        whole = all(each * (expert + 1) in ends for expert in range(weight.n_experts))
        self.require(whole, f"has a part of {weight.name} that belongs to two experts")

    def buffer(self, name: str, width: int | None = None, types: Iterable[BufferType] = (BufferType.F32,)) -> Buffer:
        self.require(name in self.buffers, f"names an unknown buffer {name}")
        buffer = self.buffers[name]
        allowed = tuple(types)
        self.require(buffer.type in allowed, f"cannot use {name}, which is {buffer.type.value}")
        if width is not None:
            self.require(buffer.width == width, f"needs {name} of width {width}, not {buffer.width}")
        return buffer

    def reads(self, name: str, width: int | None = None, types: Iterable[BufferType] = (BufferType.F32,)) -> Buffer:
        self.require(name in self.written, f"reads {name} before anything is written to it")
        return self.buffer(name, width, types)

    def writes(self, name: str, width: int | None = None, types: Iterable[BufferType] = (BufferType.F32,)) -> Buffer:
        buffer = self.buffer(name, width, types)
        self.written.add(name)
        self.routed.pop(name, None)
        self.expert_outputs = {
            out: origin for out, origin in self.expert_outputs.items() if name not in (out, origin[0])
        }
        return buffer

    def weight(self, name: str) -> Weight:
        self.require(name in self.weights, f"names an unknown weight {name}")
        return self.weights[name]

    def cache(self, name: str, n_heads: int) -> KvCache:
        self.require(name in self.caches, f"names an unknown cache {name}")
        self.sizes(("n_heads", n_heads))
        return self.caches[name]

    def vector(self, name: str, width: int) -> None:
        weight = self.weight(name)
        plain = weight.float_type is FloatType.F32 and (weight.n_rows, weight.n_columns) == (1, width)
        self.require(plain, f"needs an f32 weight {name} of (1, {width}), not ({weight.n_rows}, {weight.n_columns})")

    def number(self, name: str, value: float) -> None:
        self.require(math.isfinite(value), f"has {name} {value}; it must be a number")

    def same_rows(self, *buffers: Buffer) -> None:
        self.require(len({buffer.rows for buffer in buffers}) == 1, "mixes buffers of all rows and of logit rows")

    def matmul_input(self, name: str, weight: Weight, parts: int = 1) -> Buffer:
        """The rows that meet `weight`: as wide as its columns, or `parts` times as wide."""
        x = self.reads(name, parts * weight.n_columns, (BufferType.F32, BufferType.Q80))
        fits = x.type is BufferType.F32 or weight.float_type.is_quantized
        self.require(fits, f"cannot multiply Q80 rows with {weight.float_type.value} weights")
        return x

    def embed(self, op: Embed) -> None:
        weight = self.weight(op.weight)
        covers = weight.n_rows >= self.graph.vocab_size and len(weight.parts) == weight.n_experts == 1
        self.require(covers, f"has {weight.n_rows} embeddings for {self.graph.vocab_size} tokens")
        self.number("scale", op.scale)
        out = self.writes(op.out, weight.n_columns)
        self.require(out.rows is Rows.ALL, "embeds into a buffer of logit rows")

    def rope_angles(self, op: RopeAngles) -> None:
        out = self.writes(op.out, 2 * len(op.frequencies))
        self.require(out.rows is Rows.ALL, "writes angles to a buffer of logit rows")
        self.number("scale", op.scale)

    def rms_norm(self, op: RmsNorm) -> None:
        x = self.reads(op.x)
        if op.add is not None:
            self.same_rows(x, self.reads(op.add, x.width))
        self.vector(op.weight, x.width)
        out = self.writes(op.out, x.width, (BufferType.F32, BufferType.Q80))
        gathers = x.rows is Rows.ALL and out.rows is Rows.LOGITS
        self.require(x.rows is out.rows or gathers, "cannot spread logit rows over all rows")
        self.require(op.epsilon > 0, f"has epsilon {op.epsilon}; it must be above 0")

    def matmul(self, op: Matmul) -> None:
        weight = self.weight(op.weight)
        self.require(weight.n_experts == 1, f"multiplies with all of the experts of {weight.name}")
        x = self.matmul_input(op.x, weight)
        out = self.writes(op.out)
        fits = op.out_column >= 0 and op.out_column + weight.n_rows <= out.width
        self.require(fits, f"writes columns {op.out_column} to {op.out_column + weight.n_rows} of {out.width}")
        self.same_rows(x, out)

    def gated_matmul(self, op: GatedMatmul) -> None:
        gate, up = self.weight(op.gate), self.weight(op.up)
        self.require(gate.n_rows == up.n_rows, f"pairs {gate.n_rows} gate rows with {up.n_rows} up rows")
        self.require(gate.n_experts == up.n_experts == 1, f"multiplies with all of the experts of {gate.name}")
        x = self.matmul_input(op.x, gate)
        self.matmul_input(op.x, up)
        self.same_rows(x, self.writes(op.out, gate.n_rows, (BufferType.F32, BufferType.Q80)))

    def rope_store(self, op: RopeStore) -> None:
        cache = self.cache(op.cache, op.n_heads)
        qkv = self.reads(op.qkv, (op.n_heads + 2 * cache.n_kv_heads) * cache.head_dim)
        self.require(qkv.rows is Rows.ALL, "needs buffers of all rows")
        if op.angles is not None:
            angles = self.reads(op.angles, cache.head_dim)
            self.require(angles.rows is Rows.ALL, "needs buffers of all rows")
        if op.biases is not None:
            self.require(len(op.biases) == 3, f"has {len(op.biases)} biases, not 3")
            for name, n_heads in zip(op.biases, (op.n_heads, cache.n_kv_heads, cache.n_kv_heads), strict=True):
                self.vector(name, n_heads * cache.head_dim)
        if op.norms is not None:
            self.require(len(op.norms) == 2, f"has {len(op.norms)} norms, not 2")
            for name in op.norms:
                self.vector(name, cache.head_dim)
            self.require(0 < op.epsilon < math.inf, f"has epsilon {op.epsilon}; it must be above 0")
        self.filled.add(op.cache)

    def attention(self, op: Attention) -> None:
        cache = self.cache(op.cache, op.n_heads)
        self.require(op.cache in self.filled, f"reads {op.cache} before keys and values are written to it")
        self.require(0 <= op.first_head < op.group, f"begins with head {op.first_head} of a group of {op.group}")
        last = (op.first_head + op.n_heads - 1) // op.group
        self.require(last < cache.n_kv_heads, f"needs KV head {last} of {cache.n_kv_heads}")
        self.require(0 <= op.window <= _MAX_SIZE, f"has a window of {op.window}; it must be from 0 to {_MAX_SIZE}")
        self.number("scale", op.scale)
        qkv = self.reads(op.qkv, (op.n_heads + 2 * cache.n_kv_heads) * cache.head_dim)
        out = self.writes(op.out, op.n_heads * cache.head_dim, (BufferType.F32, BufferType.Q80))
        self.require(qkv.rows is Rows.ALL and out.rows is Rows.ALL, "needs buffers of all rows")

    def top_experts(self, op: TopExperts) -> None:
        logits, weights = self.reads(op.logits), self.writes(op.weights)
        ids = self.writes(op.ids, weights.width, (BufferType.I32,))
        self.require(ids.width <= logits.width, f"chooses {ids.width} of {logits.width} experts")
        self.require(logits.rows is Rows.ALL, "routes logit rows")
        self.same_rows(logits, ids, weights)
        self.routed[op.ids] = logits.width

    def chosen(self, ids: str, weight: Weight, first_expert: int) -> Buffer:
        """The ids by which rows choose among the experts of `weight`."""
        self.require(ids in self.routed, f"reads {ids} before experts are chosen")
        last = first_expert + weight.n_experts
        known = first_expert >= 0 and last <= self.routed[ids]
        self.require(known, f"has experts {first_expert} to {last - 1} of {self.routed[ids]} in {weight.name}")
        return self.reads(ids, None, (BufferType.I32,))

    def expert_gated_matmul(self, op: ExpertGatedMatmul) -> None:
        gate, up = self.weight(op.gate), self.weight(op.up)
        ids = self.chosen(op.ids, gate, op.first_expert)
        same = (gate.n_rows, gate.n_experts) == (up.n_rows, up.n_experts)
        self.require(same, f"pairs {gate.n_rows} gate rows with {up.n_rows} up rows")
        x = self.matmul_input(op.x, gate)
        self.matmul_input(op.x, up)
        hidden = gate.n_rows // gate.n_experts
        out = self.writes(op.out, ids.width * hidden, (BufferType.F32, BufferType.Q80))
        blocks = out.type is not BufferType.Q80 or hidden % 32 == 0
        self.require(blocks, f"writes {hidden} elements an expert to Q80 rows, no multiple of 32")
        self.same_rows(x, ids, out)
        self.expert_outputs[op.out] = (op.ids, op.first_expert, gate.n_experts)

    def expert_matmul(self, op: ExpertMatmul) -> None:
        down = self.weight(op.down)
        ids = self.chosen(op.ids, down, op.first_expert)
        origin = (op.ids, op.first_expert, down.n_experts)
        self.require(self.expert_outputs.get(op.x) == origin, f"reads {op.x}, which other experts have written")
        x = self.matmul_input(op.x, down, ids.width)
        weights = self.reads(op.weights, ids.width)
        out = self.writes(op.out, down.n_rows // down.n_experts)
        self.same_rows(x, ids, weights, out)

    def top_candidates(self, op: TopCandidates) -> None:
        logits, values = self.reads(op.logits), self.writes(op.values)
        ids, log_sum_exp = self.writes(op.ids, values.width, (BufferType.I32,)), self.writes(op.log_sum_exp, 1)
        self.require(values.width <= logits.width, f"wants {values.width} candidates of {logits.width} logits")
        last_id = op.first_id + logits.width
        self.require(op.first_id >= 0 and last_id <= _MAX_SIZE, f"numbers candidates up to {last_id}")
        self.require(logits.rows is Rows.LOGITS, "looks for candidates in a buffer of all rows")
        self.same_rows(logits, values, ids, log_sum_exp)

    def all_reduce(self, step: AllReduce) -> None:
        if step.contributes:
            self.reads(step.buffer)
        self.writes(step.buffer)

    def broadcast(self, step: Broadcast) -> None:
        self.writes(step.buffer)

    def gather_candidates(self, step: GatherCandidates) -> None:
        for names, use in ((step.own, self.reads), (step.into, self.writes)):
            if names is not None:
                self.require(len(names) == 3, f"has {len(names)} buffers of candidates, not 3")
                values = use(names[0])
                ids, log_sum_exp = use(names[1], values.width, (BufferType.I32,)), use(names[2], 1)
                self.require(values.rows is Rows.LOGITS, "gathers candidates of all rows")
                self.same_rows(values, ids, log_sum_exp)


_CHECKS: dict[type[Step], Callable[[_Checker, Any], None]] = {
    Embed: _Checker.embed,
    RopeAngles: _Checker.rope_angles,
    RmsNorm: _Checker.rms_norm,
    Matmul: _Checker.matmul,
    GatedMatmul: _Checker.gated_matmul,
    RopeStore: _Checker.rope_store,
    Attention: _Checker.attention,
    TopExperts: _Checker.top_experts,
    ExpertGatedMatmul: _Checker.expert_gated_matmul,
    ExpertMatmul: _Checker.expert_matmul,
    TopCandidates: _Checker.top_candidates,
    AllReduce: _Checker.all_reduce,
    Broadcast: _Checker.broadcast,
    GatherCandidates: _Checker.gather_candidates,
}
