"""The graph built for Llama models."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.graph import BufferType, GatedMatmul, Matmul, RmsNorm, Rows
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.rope import rope_frequencies
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import RopeScaling
from tests.support.models import small_spec
from tests.unit.graph.test_check import tensors


def test_query_key_and_value_are_one_matmul() -> None:
    spec = small_spec()
    graph = build_graph(spec, tensors(spec), GraphOptions())
    fused = next(w for w in graph.weights if w.name == "layers.1.qkv")
    assert (fused.n_rows, fused.n_columns) == (spec.q_dim + 2 * spec.kv_dim, spec.dim)
    assert [part.tensor for part in fused.parts] == ["layers.1.q", "layers.1.k", "layers.1.v"]
    n_matmuls = sum(isinstance(op, Matmul) for op in graph.steps)
    assert n_matmuls == 3 * spec.n_layers + 1
    assert sum(isinstance(op, GatedMatmul) for op in graph.steps) == spec.n_layers


def test_tensors_of_different_formats_stay_apart_and_share_an_f32_input_where_one_needs_it() -> None:
    spec = small_spec()
    infos = tensors(spec)
    infos["layers.0.v"] = TensorInfo("layers.0.v", infos["layers.0.v"].shape, FloatType.F16)
    infos["layers.1.v"] = TensorInfo("layers.1.v", infos["layers.1.v"].shape, FloatType.Q80)
    graph = build_graph(spec, infos, GraphOptions(buffer_type=BufferType.Q80))
    matmuls = {op.weight: op for op in graph.steps if isinstance(op, Matmul)}
    assert [matmuls[f"layers.0.{name}"].out_column for name in "qkv"] == [0, spec.q_dim, spec.q_dim + spec.kv_dim]
    assert {matmuls[f"layers.0.{name}"].x for name in "qkv"} == {"normed_f32"}
    assert {matmuls[f"layers.1.{name}"].x for name in "qkv"} == {"normed_q80"}


def test_f32_weights_read_f32_rows_whatever_the_buffer_type() -> None:
    spec = small_spec(weight_type=FloatType.F32)
    graph = build_graph(spec, tensors(spec, FloatType.F32), GraphOptions(buffer_type=BufferType.Q80))
    assert all(buffer.type is not BufferType.Q80 for buffer in graph.buffers)


def test_a_tied_head_is_the_embedding() -> None:
    spec = small_spec(tied_embeddings=True)
    graph = build_graph(spec, tensors(spec), GraphOptions())
    last = [op for op in graph.steps if isinstance(op, Matmul)][-1]
    assert last.weight == "embedding"
    assert sum(w.name == "embedding" for w in graph.weights) == 1


def test_only_rows_that_want_logits_reach_the_head() -> None:
    spec = small_spec()
    graph = build_graph(spec, tensors(spec), GraphOptions())
    rows = {buffer.name: buffer.rows for buffer in graph.buffers}
    last_norm = [op for op in graph.steps if isinstance(op, RmsNorm)][-1]
    assert rows[last_norm.x] is Rows.ALL
    assert {rows[last_norm.out], rows["logits"], rows["candidate_ids"]} == {Rows.LOGITS}


def test_sizes_in_bytes() -> None:
    spec = small_spec(n_layers=2, n_kv_heads=2, dim=64, n_heads=4)
    graph = build_graph(spec, tensors(spec), GraphOptions(seq_len=100, n_slots=3))
    assert graph.kv_cache_bytes() == 2 * 2 * 2 * 16 * 100 * 3 * 2
    assert sum(graph.weight_types().values()) == graph.weight_bytes()


def test_frequencies_without_scaling() -> None:
    spec = small_spec(rope_theta=100.0)
    assert rope_frequencies(spec) == pytest.approx([100.0 ** (-2 * i / 16) for i in range(8)])


def test_llama_3_1_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    spec = replace(small_spec(rope_theta=500000.0), head_dim=128, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
    plain = rope_frequencies(replace(spec, rope_scaling=None))
    scaled = rope_frequencies(spec)
    for before, after in zip(plain, scaled, strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 8192 / 4:
            assert after == before
        elif wavelength > 8192:
            assert after == pytest.approx(before / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            assert after == pytest.approx((1 - smooth) * before / 8 + smooth * before)
    assert plain[0] == scaled[0] == 1.0
    assert scaled[-1] == pytest.approx(plain[-1] / 8)
