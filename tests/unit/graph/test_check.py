"""`check` lets a built graph through and stops every way of breaking it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.check import check
from dllama_gpu.graph.graph import (
    Attention,
    Buffer,
    BufferType,
    Embed,
    GatedMatmul,
    Graph,
    KvCache,
    Matmul,
    RmsNorm,
    RopeAngles,
    RopeStore,
    Rows,
    TopCandidates,
    Weight,
)
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec
from tests.support.models import random_tensors, small_spec


def tensors(spec: ModelSpec, float_type: FloatType = FloatType.Q40) -> dict[str, TensorInfo]:
    """What a file of this spec would hold."""
    infos = {}
    for name, values in random_tensors(spec, seed=0):
        type = float_type if values.ndim == 2 and values.shape[0] > 1 else FloatType.F32
        infos[name] = TensorInfo(name, values.shape, type)
    return infos


def graph() -> Graph:
    spec = small_spec()
    return build_graph(spec, tensors(spec), GraphOptions(max_rows=8, seq_len=32, n_candidates=4))


def with_op(kind: type, **changes: Any) -> Callable[[Graph], Graph]:
    """Changes the first op of a kind."""

    def change(graph: Graph) -> Graph:
        ops = list(graph.steps)
        index = next(i for i, op in enumerate(ops) if isinstance(op, kind))
        ops[index] = replace(ops[index], **changes)
        return replace(graph, steps=tuple(ops))

    return change


def with_buffer(name: str, **changes: Any) -> Callable[[Graph], Graph]:
    return lambda graph: replace(
        graph, buffers=tuple(replace(b, **changes) if b.name == name else b for b in graph.buffers)
    )


def with_weight(name: str, **changes: Any) -> Callable[[Graph], Graph]:
    return lambda graph: replace(
        graph, weights=tuple(replace(w, **changes) if w.name == name else w for w in graph.weights)
    )


def without_op(kind: type) -> Callable[[Graph], Graph]:
    return lambda graph: replace(graph, steps=tuple(op for op in graph.steps if not isinstance(op, kind)))


def test_a_built_graph_is_sound() -> None:
    check(graph())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: replace(g, max_rows=0), "max_rows = 0"),
        (lambda g: replace(g, seq_len=-1), "seq_len = -1"),
        (lambda g: replace(g, n_slots=2**31), "n_slots"),
        (lambda g: replace(g, vocab_size=129), "128 embeddings for 129 tokens"),
        (lambda g: replace(g, buffers=(*g.buffers, Buffer("x", 64))), "declared twice"),
        (lambda g: replace(g, caches=(*g.caches, KvCache("kv.0", 1, 16))), "declared twice"),
        (lambda g: replace(g, weights=(*g.weights, g.weights[0])), "declared twice"),
        (lambda g: replace(g, caches=()), "unknown cache kv.0"),
        (lambda g: replace(g, weights=g.weights[1:]), "unknown weight embedding"),
        (lambda g: replace(g, steps=(*g.steps, "rm -rf")), "unknown kind"),
        (with_buffer("normed_q80", width=63), "no multiple of 32"),
        (with_buffer("x", width=0), "x.width = 0"),
        (with_buffer("qkv", width=100), "of 100"),
        (with_buffer("delta", width=32), "of 32"),
        (with_buffer("delta", rows=Rows.LOGITS), "mixes buffers"),
        (with_buffer("logits", rows=Rows.ALL), "mixes buffers"),
        (with_buffer("x", rows=Rows.LOGITS), "logit rows"),
        (with_buffer("angles", rows=Rows.LOGITS), "logit rows"),
        (with_buffer("candidate_ids", type=BufferType.F32), "candidate_ids, which is f32"),
        (with_buffer("candidate_values", width=1000), "candidate_ids of width 1000"),
        (with_buffer("log_sum_exp", width=2), "log_sum_exp of width 1"),
        (with_weight("layers.0.qkv", n_rows=127), "128 rows in the parts"),
        (with_weight("layers.0.qkv", n_columns=32), "impossible slice"),
        (with_weight("layers.0.qkv", float_type=FloatType.F32), "cannot multiply Q80 rows with f32 weights"),
        (with_weight("final_norm", float_type=FloatType.F16), "needs an f32 weight"),
        (with_weight("layers.0.gate", parts=()), "0 rows in the parts"),
        (with_op(Embed, out="nowhere"), "unknown buffer nowhere"),
        (with_op(Embed, out="normed_q80"), "which is q80"),
        (with_op(RopeAngles, frequencies=(1.0,)), "angles of width 2"),
        (with_op(RmsNorm, epsilon=0.0), "epsilon 0.0"),
        (with_op(RmsNorm, add="delta"), "reads delta before"),
        (with_op(RmsNorm, weight="layers.0.o"), "needs an f32 weight"),
        (with_op(Matmul, out_column=-1), "writes columns -1"),
        (with_op(Matmul, out_column=1), "writes columns 1 to 129 of 128"),
        (with_op(Matmul, x="hidden_q80"), "reads hidden_q80 before"),
        (with_op(GatedMatmul, up="layers.0.o"), "96 gate rows with 64 up rows"),
        (with_op(RopeStore, n_heads=0), "n_heads = 0"),
        (with_op(RopeStore, n_heads=2), "qkv of width"),
        (with_op(Attention, n_heads=8), "needs KV head 3 of 2"),
        (with_op(Attention, n_heads=3), "qkv of width"),
        (with_op(Attention, group=0), "begins with head 0 of a group of 0"),
        (with_op(Attention, first_head=2), "begins with head 2 of a group of 2"),
        (with_op(Attention, first_head=1), "needs KV head 2 of 2"),
        (with_op(Attention, out="delta_missing"), "unknown buffer"),
        (with_op(TopCandidates, first_id=-1), "numbers candidates"),
        (with_op(TopCandidates, first_id=2**31 - 5), "numbers candidates"),
        (with_op(TopCandidates, logits="x"), "all rows"),
        (without_op(RopeStore), "before keys and values"),
        (without_op(Embed), "reads x before"),
        (without_op(RopeAngles), "reads angles before"),
    ],
)
def test_a_broken_graph_is_refused(change: Callable[[Graph], Graph], message: str) -> None:
    with pytest.raises(DllamaError, match="unsound graph") as refusal:
        check(change(graph()))
    assert message in str(refusal.value)


def test_slices_of_quantized_tensors_keep_whole_blocks() -> None:
    built = graph()
    weight = next(w for w in built.weights if w.name == "layers.0.o")
    part = replace(weight.parts[0], column_begin=16, column_end=80)
    broken: Weight = replace(weight, parts=(part,))
    with pytest.raises(DllamaError, match="impossible slice"):
        check(with_weight("layers.0.o", parts=broken.parts)(built))


def test_no_more_candidates_than_logits() -> None:
    wide = with_buffer("candidate_ids", width=1000)(with_buffer("candidate_values", width=1000)(graph()))
    with pytest.raises(DllamaError, match="1000 candidates of 128 logits"):
        check(wide)
