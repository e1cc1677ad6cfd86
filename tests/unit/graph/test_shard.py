"""Shards tile a model exactly, and nodes that each compute one agree with a node that computes all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Program, Row
from dllama_gpu.graph.check import check
from dllama_gpu.graph.graph import BufferType, Graph, TensorSlice
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import Shard, Span, shard_by_ratio, split, whole
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.source import ModelSource
from tests.oracle.numpy_device import NumpyDevice
from tests.support.local_cluster import LocalCluster
from tests.support.models import small_spec, write_random_m
from tests.unit.graph.test_check import tensors

RATIOS = st.lists(st.floats(0, 1e6), min_size=1, max_size=12).filter(lambda ratio: sum(ratio) > 0)


def tiles(spans: Sequence[Span], total: int) -> bool:
    """Whether the spans follow each other from 0 to `total`."""
    ends = [0, *(span.end for span in spans)]
    return all(span.begin == end <= span.end for span, end in zip(spans, ends, strict=False)) and ends[-1] == total


@given(total=st.integers(1, 5000), unit=st.integers(1, 64), ratio=RATIOS)
def test_split_tiles_and_stays_within_a_unit_of_the_ratio(total: int, unit: int, ratio: list[float]) -> None:
    spans = split(total, unit, ratio)
    assert tiles(spans, total)
    for span, share in zip(spans, ratio, strict=True):
        assert span.begin % unit == 0 or span.begin == total
        assert share > 0 or len(span) == 0
        assert abs(len(span) - share / sum(ratio) * total) <= 2 * unit


@pytest.mark.parametrize("ratio", [[], [0.0, 0.0], [1.0, -1.0], [float("nan")], [float("inf"), 1.0]])
def test_impossible_ratios_are_refused(ratio: list[float]) -> None:
    with pytest.raises(DllamaError, match="shares must be"):
        split(10, 1, ratio)


@given(
    group=st.integers(1, 5),
    n_kv_heads=st.integers(1, 5),
    head_dim=st.sampled_from([8, 16, 32, 64, 80]),
    hidden_blocks=st.integers(1, 9),
    vocab_size=st.integers(1, 300),
    ratio=RATIOS,
)
def test_every_tensor_is_covered_exactly_whatever_the_shape_and_ratio(
    group: int, n_kv_heads: int, head_dim: int, hidden_blocks: int, vocab_size: int, ratio: list[float]
) -> None:
    n_heads = group * n_kv_heads
    spec = small_spec(
        dim=64,
        head_dim=head_dim,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        hidden_dim=32 * hidden_blocks,
        vocab_size=vocab_size,
        n_layers=1,
    )
    plain = (spec.q_dim % 32, spec.hidden_dim % 32) != (0, 0)  # such a model cannot be quantized
    infos = tensors(spec, FloatType.F32 if plain else FloatType.Q40)
    graphs = [build_graph(spec, infos, GraphOptions(), shard) for shard in shard_by_ratio(spec, ratio)]
    for graph in graphs:
        check(graph)
    for name in ("layers.0.q", "layers.0.o", "layers.0.gate", "layers.0.up", "layers.0.down", "head"):
        assert covered_cells(graphs, name) == Counter({1: infos[name].n_rows * infos[name].n_columns})
    for name in ("layers.0.k", "layers.0.v"):  # shared where a group of query heads is cut
        assert 0 not in covered_cells(graphs, name)
    assert sum("embedding" in used_tensors(graph) for graph in graphs) == 1


def used_tensors(graph: Graph) -> set[str]:
    return {part.tensor for weight in graph.weights for part in weight.parts}


def covered_cells(graphs: Sequence[Graph], tensor: str) -> Counter[int]:
    """How many cells of a tensor lie in how many nodes' slices."""
    slices: list[TensorSlice] = [
        part for graph in graphs for weight in graph.weights for part in weight.parts if part.tensor == tensor
    ]
    cells = np.zeros((max(part.row_end for part in slices), max(part.column_end for part in slices)), np.int32)
    for part in slices:
        cells[part.row_begin : part.row_end, part.column_begin : part.column_end] += 1
    numbers, counts = np.unique(cells, return_counts=True)
    return Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))


def test_kv_heads_of_a_cut_group_are_on_both_sides() -> None:
    spec = small_spec(n_heads=9, n_kv_heads=3, head_dim=32, dim=288)
    first, second = shard_by_ratio(spec, [4, 5])
    assert (first.kv_heads(spec), second.kv_heads(spec)) == (Span(0, 2), Span(1, 3))
    assert whole(spec).kv_heads(spec) == Span(0, 3)
    assert Shard(1, 2, Span(9, 9), Span(0, 0), Span(0, 0)).kv_heads(spec) == Span(0, 0)


TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 160, 24)]
SHAPE = {
    "dim": 288,
    "hidden_dim": 320,
    "n_layers": 3,
    "n_heads": 9,
    "n_kv_heads": 3,
    "head_dim": 32,
    "vocab_size": 160,
    "max_seq_len": 64,
}
CLUSTERS: list[list[float]] = [[1], [1, 1], [1, 1, 1], [1] * 4, [1] * 5, [1] * 9, [4, 1, 1], [0, 1, 2], [5, 0, 1, 3]]


def awkward_model(folder: Path, weight_type: FloatType) -> MFile:
    """SmolLM2's proportions: 9 heads, 3 KV heads."""
    path = folder / f"awkward_{weight_type.value}.m"
    write_random_m(path, **SHAPE, weight_type=weight_type, seed=2)
    return MFile(path)


@pytest.fixture(scope="module", params=[FloatType.F32, FloatType.Q40])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    file = awkward_model(tmp_path_factory.mktemp("model"), request.param)
    yield file
    file.close()


def cluster(source: ModelSource, ratio: Sequence[float], wire: FloatType, buffer_type: BufferType) -> LocalCluster:
    options = GraphOptions(max_rows=32, seq_len=40, buffer_type=buffer_type, n_candidates=12)
    programs: list[Program] = []
    for shard in shard_by_ratio(source.spec, ratio):
        programs.append(CpuDevice(1).compile(build_graph(source.spec, source.tensors, options, shard), source))
    return LocalCluster(programs, wire)


def greedy(nodes: LocalCluster, n_tokens: int = 12) -> list[int]:
    """Prefill, then decode by the best candidate."""
    rows = [Row(token, 0, p, p == len(TOKENS) - 1) for p, token in enumerate(TOKENS)]
    generated: list[int] = []
    for _ in range(n_tokens):
        nodes.run(Batch.of(rows))
        generated.append(int(nodes.programs[0].buffer("candidate_ids", 1)[0, 0]))
        rows = [Row(generated[-1], 0, len(TOKENS) + len(generated) - 1, True)]
    return generated


def test_f32_nodes_write_the_same_text_as_one_node(tmp_path: Path) -> None:
    source = awkward_model(tmp_path, FloatType.F32)
    expected = greedy(cluster(source, [1], FloatType.F32, BufferType.F32))
    for ratio in CLUSTERS[1:]:
        assert greedy(cluster(source, ratio, FloatType.F32, BufferType.F32)) == expected, ratio
    source.close()


@pytest.mark.parametrize("ratio", CLUSTERS[1:], ids=str)
@pytest.mark.parametrize("wire", [FloatType.F32, FloatType.F16, FloatType.Q80])
def test_nodes_agree_with_one_node(source: ModelSource, wire: FloatType, ratio: list[float]) -> None:
    rows = [Row(token, 0, p, True, 0.7) for p, token in enumerate(TOKENS)]
    one = NumpyDevice().compile(build_graph(source.spec, source.tensors, GraphOptions(n_candidates=12)), source)
    one.run(Batch.of(rows))
    nodes = cluster(source, ratio, wire, BufferType.Q80)
    nodes.run(Batch.of(rows))
    slices = [p.buffer("logits", len(rows)) for p in nodes.programs if "logits" in {b.name for b in p.graph.buffers}]
    found, wanted = np.concatenate(slices, axis=1), one.buffer("logits", len(rows))
    exact = source.spec.weight_type is FloatType.F32 and wire is FloatType.F32
    assert np.abs(found - wanted).max() <= (1e-3 if exact else 0.06) * np.abs(wanted).max()
    # The gathered candidates are those of the gathered logits.
    root = nodes.programs[0]
    order = np.argsort(-found, axis=1, kind="stable")[:, :12]
    assert np.array_equal(root.buffer("candidate_ids", len(rows)), order)
    tempered = found.astype(np.float64) / 0.7
    expected = np.logaddexp.reduce(tempered, axis=1)
    assert np.abs(root.buffer("log_sum_exp", len(rows))[:, 0] - expected).max() < 1e-4


def test_the_residual_stream_is_bit_identical_on_all_nodes(source: ModelSource) -> None:
    for wire in (FloatType.F32, FloatType.Q80):
        nodes = cluster(source, [3, 1, 2, 0], wire, BufferType.Q80)
        nodes.run(Batch.of([Row(token, 0, p) for p, token in enumerate(TOKENS)]))
        streams = [program.buffer("x", len(TOKENS)) for program in nodes.programs]
        assert all(np.array_equal(streams[0], other) for other in streams[1:])


def test_a_share_of_a_model_does_not_run_alone(source: ModelSource) -> None:
    program = cluster(source, [1, 1], FloatType.F32, BufferType.F32).programs[0]
    with pytest.raises(DllamaError, match="only within a cluster"):
        program.run(Batch.of([Row(0, 0, 0)]))
