"""The oracle: a device that runs graphs in NumPy, slowly and plainly, for every other device to be compared with.

Arithmetic is float64 throughout; what a graph says is stored in a narrower format (Q80 buffers, the KV cache) is
rounded to it, so that the differences left are those of summation order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.batch import Batch, ExchangeHandler, LoadProgress
from dllama_gpu.graph.graph import (
    Activation,
    Attention,
    BufferType,
    CacheType,
    Embed,
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
    Weight,
)
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource
from dllama_gpu.model.spec import RopeStyle

Array = npt.NDArray[np.float64]


class NumpyDevice:
    """Implements `dllama_gpu.graph.batch.Device`."""

    name = "numpy"

    def compile(self, graph: Graph, source: ModelSource, progress: LoadProgress | None = None) -> NumpyProgram:
        """Dequantizes all weights to float64."""
        return NumpyProgram(graph, source)


class NumpyProgram:
    """Implements `dllama_gpu.graph.batch.Program`."""

    def __init__(self, graph: Graph, source: ModelSource) -> None:
        self.graph = graph
        self.weights = {weight.name: _load(weight, source) for weight in graph.weights}
        self.values: dict[str, Array] = {}
        self.declared = {buffer.name: buffer for buffer in graph.buffers}
        self.caches = {cache.name: cache for cache in graph.caches}
        # (slot, position) -> (n_kv_heads, head_dim)
        self.keys: dict[str, dict[tuple[int, int], Array]] = {name: {} for name in self.caches}
        self.stored: dict[str, dict[tuple[int, int], Array]] = {name: {} for name in self.caches}

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        """Computes one step."""
        for buffer in self.graph.buffers:
            n_rows = len(batch.logit_rows if buffer.rows is Rows.LOGITS else batch.tokens)
            self.values[buffer.name] = np.zeros((n_rows, buffer.width))
        for ops, wanted in self.graph.segments():
            for op in ops:
                _RUN[type(op)](self, op, batch)
            if wanted is not None:
                assert exchange is not None
                exchange(wanted, batch)

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        """Rows of a buffer after a step, float64."""
        return self.values[name][:n_rows]

    def write(self, name: str, values: Array) -> None:
        """Stores values in a buffer, rounded to its format."""
        if self.declared[name].type is BufferType.Q80 and values.size:
            raw = quantize(values.astype(np.float32), FloatType.Q80)
            values = dequantize(raw, FloatType.Q80).astype(np.float64)
        self.values[name] = values

    def embed(self, op: Embed, batch: Batch) -> None:
        self.write(op.out, self.weights[op.weight][batch.tokens] * op.scale)

    def rope_angles(self, op: RopeAngles, batch: Batch) -> None:
        angles = batch.positions[:, None] * np.array(op.frequencies)[None, :]
        self.write(op.out, np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * op.scale)

    def rms_norm(self, op: RmsNorm, batch: Batch) -> None:
        gathers = self.declared[op.out].rows is Rows.LOGITS and self.declared[op.x].rows is Rows.ALL
        rows = batch.logit_rows if gathers else slice(None)
        x = self.values[op.x]
        if op.add is not None:
            x[rows] += self.values[op.add][rows]
        chosen = x[rows]
        scale = 1.0 / np.sqrt(np.mean(chosen**2, axis=1, keepdims=True) + op.epsilon)
        self.write(op.out, chosen * scale * self.weights[op.weight])

    def matmul(self, op: Matmul, batch: Batch) -> None:
        product = self.values[op.x] @ self.weights[op.weight].T
        self.values[op.out][:, op.out_column : op.out_column + product.shape[1]] = product

    def gated_matmul(self, op: GatedMatmul, batch: Batch) -> None:
        gate, up = (self.values[op.x] @ self.weights[name].T for name in (op.gate, op.up))
        self.write(op.out, _activate(gate, op.activation) * up)

    def top_experts(self, op: TopExperts, batch: Batch) -> None:
        logits = self.values[op.logits]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        ids = np.argsort(-logits, axis=1, kind="stable")[:, : self.declared[op.ids].width]
        weights = np.take_along_axis(p, ids, axis=1)
        self.values[op.ids] = ids
        self.values[op.weights] = weights / weights.sum(axis=1, keepdims=True) if op.normalize else weights

    def expert_gated_matmul(self, op: ExpertGatedMatmul, batch: Batch) -> None:
        x, ids = self.values[op.x], self.values[op.ids]
        gates, ups = self.experts(op.gate), self.experts(op.up)
        out = np.zeros((len(x), ids.shape[1], gates.shape[1]))
        for row, part, expert in self.chosen(op.ids, op.first_expert, len(gates)):
            gate, up = gates[expert] @ x[row], ups[expert] @ x[row]
            out[row, part] = _activate(gate, op.activation) * up
        self.write(op.out, out.reshape(len(x), -1))

    def expert_matmul(self, op: ExpertMatmul, batch: Batch) -> None:
        x, weights, downs = self.values[op.x], self.values[op.weights], self.experts(op.down)
        out = np.zeros((len(x), downs.shape[1]))
        parts = x.reshape(len(x), -1, downs.shape[2])
        for row, part, expert in self.chosen(op.ids, op.first_expert, len(downs)):
            out[row] += weights[row, part] * (downs[expert] @ parts[row, part])
        self.write(op.out, out)

    def experts(self, name: str) -> Array:
        """A stack of experts as (n_experts, rows, columns)."""
        n_experts = next(weight.n_experts for weight in self.graph.weights if weight.name == name)
        return self.weights[name].reshape(n_experts, -1, self.weights[name].shape[1])

    def chosen(self, ids: str, first_expert: int, n_experts: int) -> list[tuple[int, int, int]]:
        """(row, part, expert) of every choice among the experts from `first_expert` on."""
        found = []
        for (row, part), expert in np.ndenumerate(self.values[ids].astype(int) - first_expert):
            if 0 <= expert < n_experts:
                found.append((row, part, int(expert)))
        return found

    def rope_store(self, op: RopeStore, batch: Batch) -> None:
        cache = self.caches[op.cache]
        n_heads, n_kv_heads, head_dim = op.n_heads, cache.n_kv_heads, cache.head_dim
        n_rows = len(batch.tokens)
        heads = self.values[op.qkv].reshape(n_rows, n_heads + 2 * n_kv_heads, head_dim)
        if op.biases is not None:
            heads += np.concatenate([self.weights[name][0] for name in op.biases]).reshape(1, -1, head_dim)
        turned = heads[:, : n_heads + n_kv_heads]
        if op.norms is not None:
            q_norm, k_norm = (self.weights[name][0] for name in op.norms)
            turned /= np.sqrt(np.mean(turned**2, axis=-1, keepdims=True) + op.epsilon)
            turned[:, :n_heads] *= q_norm
            turned[:, n_heads:] *= k_norm
        if op.angles is None:
            cosines, sines = np.ones((n_rows, head_dim // 2)), np.zeros((n_rows, head_dim // 2))
        else:
            cosines, sines = np.split(self.values[op.angles], 2, axis=1)
        if op.style is RopeStyle.INTERLEAVED:
            a, b = turned[..., 0::2].copy(), turned[..., 1::2].copy()
            turned[..., 0::2] = a * cosines[:, None] - b * sines[:, None]
            turned[..., 1::2] = a * sines[:, None] + b * cosines[:, None]
        else:
            a, b = np.split(turned.copy(), 2, axis=-1)
            turned[...] = np.concatenate(
                [a * cosines[:, None] - b * sines[:, None], a * sines[:, None] + b * cosines[:, None]], axis=-1
            )
        for row in range(n_rows):
            place = int(batch.slots[row]), int(batch.positions[row])
            self.keys[op.cache][place] = _kept(heads[row, n_heads : n_heads + n_kv_heads], cache.type)
            self.stored[op.cache][place] = _kept(heads[row, n_heads + n_kv_heads :], cache.type)

    def attention(self, op: Attention, batch: Batch) -> None:
        cache = self.caches[op.cache]
        n_rows = len(batch.tokens)
        queries = self.values[op.qkv][:, : op.n_heads * cache.head_dim].reshape(n_rows, op.n_heads, cache.head_dim)
        out = np.zeros((n_rows, op.n_heads, cache.head_dim))
        for row in range(n_rows):
            slot, position = int(batch.slots[row]), int(batch.positions[row])
            seen = range(max(0, position + 1 - op.window) if op.window else 0, position + 1)
            keys = np.stack([self.keys[op.cache][slot, p] for p in seen])
            values = np.stack([self.stored[op.cache][slot, p] for p in seen])
            for head in range(op.n_heads):
                kv_head = (head + op.first_head) // op.group
                scores = keys[:, kv_head] @ queries[row, head] * op.scale
                weights = np.exp(scores - scores.max())
                out[row, head] = weights / weights.sum() @ values[:, kv_head]
        self.write(op.out, out.reshape(n_rows, -1))

    def top_candidates(self, op: TopCandidates, batch: Batch) -> None:
        logits = self.values[op.logits]
        order = np.argsort(-logits, axis=1, kind="stable")[:, : self.declared[op.values].width]
        self.values[op.values] = np.take_along_axis(logits, order, axis=1)
        self.values[op.ids] = order + op.first_id
        tempered = logits / batch.temperatures[:, None]
        highest = tempered.max(axis=1, keepdims=True)
        self.values[op.log_sum_exp] = highest + np.log(np.exp(tempered - highest).sum(axis=1, keepdims=True))


_RUN: dict[type[Op], Callable[[NumpyProgram, Any, Batch], None]] = {
    Embed: NumpyProgram.embed,
    RopeAngles: NumpyProgram.rope_angles,
    RmsNorm: NumpyProgram.rms_norm,
    Matmul: NumpyProgram.matmul,
    GatedMatmul: NumpyProgram.gated_matmul,
    RopeStore: NumpyProgram.rope_store,
    Attention: NumpyProgram.attention,
    TopExperts: NumpyProgram.top_experts,
    ExpertGatedMatmul: NumpyProgram.expert_gated_matmul,
    ExpertMatmul: NumpyProgram.expert_matmul,
    TopCandidates: NumpyProgram.top_candidates,
}


def _load(weight: Weight, source: ModelSource) -> Array:
    parts = []
    for part in weight.parts:
        values = dequantize(source.read(part.tensor), source.tensors[part.tensor].float_type)
        parts.append(values[part.row_begin : part.row_end, part.column_begin : part.column_end])
    return np.concatenate(parts).astype(np.float64)


def _kept(values: Array, type: CacheType) -> Array:
    """Rounded as a cache of the type keeps them."""
    return dequantize(quantize(values.astype(np.float32), type.float_type), type.float_type).astype(np.float64)


def _activate(gate: Array, activation: Activation) -> Array:
    if activation is Activation.SILU:
        return gate / (1.0 + np.exp(-gate))
    return 0.5 * gate * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)))
