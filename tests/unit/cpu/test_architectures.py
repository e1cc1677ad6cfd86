"""Every architecture on the CPU beside the NumPy oracle, on one node and on several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.cpu.program import CpuProgram
from dllama_gpu.cpu.weights import load_weights
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Program, Row
from dllama_gpu.graph.check import check
from dllama_gpu.graph.graph import BufferType, CacheType, Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import Shard, Span, shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import Architecture, ModelSpec
from tests.oracle.numpy_device import NumpyDevice
from tests.support.architectures import architecture_spec, random_source
from tests.support.arrays import ArraySource
from tests.support.local_cluster import LocalCluster

N_TOKENS = 24
OPTIONS = GraphOptions(max_rows=N_TOKENS, seq_len=32, n_candidates=4, n_slots=2)
Logits = npt.NDArray[np.float64]


def rows(n: int, slot: int = 0) -> list[Row]:
    return [Row((7 * i * i + 3 * i) % 96, slot, i, wants_logits=True) for i in range(n)]


def one_node(graph: Graph, source: ArraySource, device: CpuDevice | NumpyDevice, chunk: int = N_TOKENS) -> Logits:
    program: Program = device.compile(graph, source)
    parts = []
    for begin in range(0, N_TOKENS, chunk):
        part = rows(N_TOKENS)[begin : begin + chunk]
        program.run(Batch.of(part))
        parts.append(np.array(program.buffer("logits", len(part)), np.float64))
    return np.concatenate(parts)


def cluster(spec: ModelSpec, source: ArraySource, shards: tuple[Shard, ...]) -> Logits:
    graphs = [build_graph(spec, source.tensors, OPTIONS, shard) for shard in shards]
    for graph in graphs:
        check(graph)
    programs = [CpuDevice(1).compile(graph, source) for graph in graphs]
    LocalCluster(programs).run(Batch.of(rows(N_TOKENS)))
    slices = [
        np.array(program.buffer("logits", N_TOKENS), np.float64)
        for program, shard in zip(programs, shards, strict=True)
        if shard.vocab
    ]
    return np.concatenate(slices, axis=1)


def close(found: Logits, wanted: Logits, tolerance: float) -> None:
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("kernels", _native.kernel_names())
@pytest.mark.parametrize("weights", [FloatType.F32, FloatType.Q40])
@pytest.mark.parametrize("architecture", Architecture)
def test_logits_agree_with_the_oracle(architecture: Architecture, weights: FloatType, kernels: str) -> None:
    spec = architecture_spec(architecture, weights)
    source = random_source(spec)
    graph = build_graph(spec, source.tensors, OPTIONS)
    found = one_node(graph, source, CpuDevice(1, kernels))
    # Where rows are quantized, a value near a half moves a whole quant, and later layers see it.
    close(found, one_node(graph, source, NumpyDevice()), 2e-3 if weights is FloatType.F32 else 0.08)


@pytest.mark.parametrize("architecture", Architecture)
def test_every_division_into_chunks_and_threads_gives_the_same_bits(architecture: Architecture) -> None:
    spec = architecture_spec(architecture, FloatType.Q40)
    source = random_source(spec)
    graph = build_graph(spec, source.tensors, OPTIONS)
    at_once = one_node(graph, source, CpuDevice(1))
    for chunk in (1, 5, 23):
        assert np.array_equal(one_node(graph, source, CpuDevice(2), chunk), at_once), f"chunks of {chunk}"


@pytest.mark.parametrize("architecture", Architecture)
def test_three_unequal_nodes_compute_what_one_does(architecture: Architecture) -> None:
    spec = architecture_spec(architecture)
    source = random_source(spec)
    alone = one_node(build_graph(spec, source.tensors, OPTIONS), source, CpuDevice(1))
    for ratio in ((3.0, 1.0, 2.0), (0.0, 1.0, 1.0)):
        close(cluster(spec, source, shard_by_ratio(spec, ratio)), alone, 1e-4)


def test_nodes_with_threads_that_come_late_compute_what_those_with_one_thread_do() -> None:
    """Each segment of a node is a run of its own, of a range of its ops, and its steps are long and short in turn."""
    spec = architecture_spec(Architecture.QWEN3, FloatType.Q40)
    source = random_source(spec)
    graphs = [build_graph(spec, source.tensors, OPTIONS, shard) for shard in shard_by_ratio(spec, (2.0, 1.0))]
    pools = [_native.ThreadPool(4, False) for _ in graphs]
    kernels = CpuDevice(1).kernels
    crowded = [
        CpuProgram(graph, load_weights(graph, source, pool), pool, kernels)
        for graph, pool in zip(graphs, pools, strict=True)
    ]
    alone = [CpuDevice(1).compile(graph, source) for graph in graphs]
    steps = [rows(N_TOKENS), rows(1), rows(5), [*rows(2, slot=1), *rows(3)]]
    expected = []
    for step in steps:
        LocalCluster(alone).run(Batch.of(step))
        expected.append([program.buffer("logits", len(step)).copy() for program in alone])
    for _ in range(10):
        for step, wanted in zip(steps, expected, strict=True):
            LocalCluster(crowded).run(Batch.of(step))
            for program, logits in zip(crowded, wanted, strict=True):
                assert np.array_equal(program.buffer("logits", len(step)), logits)


@pytest.mark.parametrize("architecture", [a for a in Architecture if a.has_experts])
def test_nodes_with_whole_experts_compute_what_one_does(architecture: Architecture) -> None:
    spec = architecture_spec(architecture)
    source = random_source(spec)
    alone = one_node(build_graph(spec, source.tensors, OPTIONS), source, CpuDevice(1))
    cut = shard_by_ratio(spec, (1.0, 1.0, 1.0))
    spans = (Span(0, 1), Span(1, 1), Span(1, spec.n_experts))
    whole = Span(0, spec.ffn_dim)
    shards = tuple(replace(shard, hidden=whole, experts=experts) for shard, experts in zip(cut, spans, strict=True))
    close(cluster(spec, source, shards), alone, 1e-4)


@pytest.mark.parametrize("cache", CacheType)
@pytest.mark.parametrize("architecture", [Architecture.QWEN3, Architecture.GEMMA3])
def test_every_cache_type_agrees_with_the_oracle(architecture: Architecture, cache: CacheType) -> None:
    spec = architecture_spec(architecture)
    source = random_source(spec)
    options = GraphOptions(max_rows=N_TOKENS, seq_len=32, n_candidates=4, cache_type=cache)
    graph = build_graph(spec, source.tensors, options)
    tolerance = 0.02 if cache is CacheType.Q80 else 2e-3
    close(one_node(graph, source, CpuDevice(1), 7), one_node(graph, source, NumpyDevice(), 7), tolerance)


def test_rows_of_several_slots_choose_their_experts_for_themselves() -> None:
    spec = architecture_spec(Architecture.QWEN3_MOE, FloatType.Q40)
    source = random_source(spec)
    program = CpuDevice(2).compile(build_graph(spec, source.tensors, OPTIONS), source)
    program.run(Batch.of(rows(9)))
    alone = program.buffer("logits", 9).copy()
    program.run(Batch.of([*rows(9, slot=1), *rows(9, slot=0)]))
    assert np.array_equal(program.buffer("logits", 18), np.concatenate([alone, alone]))


def test_damaged_experts_show_in_the_logits_of_rows_that_chose_them() -> None:
    spec = architecture_spec(Architecture.MIXTRAL, FloatType.F32)
    source = random_source(spec)
    router = np.zeros((spec.n_experts, spec.dim), np.float32)
    router[0] = 3e38
    source.add("layers.0.router", router)
    program = CpuDevice(1).compile(build_graph(spec, source.tensors, OPTIONS), source)
    program.run(Batch.of(rows(3)))
    assert np.isnan(program.buffer("logits", 3)).all()


@pytest.mark.parametrize("buffer_type", [BufferType.F32, BufferType.Q80])
def test_a_router_reads_f32_rows(buffer_type: BufferType) -> None:
    spec = architecture_spec(Architecture.MIXTRAL, FloatType.Q40)
    source = random_source(spec)
    options = GraphOptions(max_rows=4, seq_len=32, buffer_type=buffer_type)
    graph = build_graph(spec, source.tensors, options)
    routers = [op for op in graph.steps if getattr(op, "weight", "").endswith("router")]
    assert [op.x for op in routers] == ["normed_f32"] * spec.n_layers  # type: ignore[union-attr]
