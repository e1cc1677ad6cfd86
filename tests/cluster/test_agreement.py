"""The default model on many nodes, over sockets: how far it may differ from the model on one node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.graph.graph import BufferType
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.open import open_model
from dllama_gpu.model.source import ModelSource
from tests.support.local_cluster import LocalCluster
from tests.support.mesh import MeshCluster, meshes

WINDOW = 512
DIRECT, TWO_HOPS = Algorithm.DIRECT, Algorithm.REDUCE_SCATTER_ALL_GATHER
Nodes = LocalCluster | MeshCluster


@pytest.fixture(scope="module")
def source(smollm2_gguf: Path) -> Iterator[ModelSource]:
    """9 query heads, 3 KV heads."""
    file = open_model(smollm2_gguf)
    yield file
    file.close()


@contextmanager
def nodes(
    source: ModelSource,
    ratio: Sequence[float],
    buffer_type: BufferType,
    wire: FloatType,
    algorithm: Algorithm = DIRECT,
) -> Iterator[Nodes]:
    options = GraphOptions(max_rows=WINDOW, seq_len=WINDOW, buffer_type=buffer_type)
    graphs = [build_graph(source.spec, source.tensors, options, shard) for shard in shard_by_ratio(source.spec, ratio)]
    programs = [CpuDevice(1).compile(graph, source) for graph in graphs]
    if len(programs) == 1:
        yield LocalCluster(programs)
        return
    with meshes(len(programs)) as connected:
        yield MeshCluster(connected, programs, wire, algorithm)


def greedy(cluster: Nodes, prompt: list[int], n_tokens: int) -> list[int]:
    rows, written = [Row(token, 0, i, i == len(prompt) - 1) for i, token in enumerate(prompt)], list[int]()
    while True:
        cluster.run(Batch.of(rows))
        written.append(int(cluster.programs[0].buffer("candidate_ids", 1)[0, 0]))
        if len(written) == n_tokens:
            return written
        rows = [Row(written[-1], 0, len(prompt) + len(written) - 1, True)]


def test_the_greedy_text_does_not_depend_on_the_number_of_nodes(source: ModelSource, golden: dict[str, Any]) -> None:
    """Exact activations and exchanges, so that only the order of sums differs."""
    prompt = golden["greedy"]["q4_1"][0]["prompt_ids"]
    texts = {}
    for n_nodes in (1, 2, 3, 4, 5, 9):
        with nodes(source, [1] * n_nodes, BufferType.F32, FloatType.F32) as cluster:
            texts[n_nodes] = greedy(cluster, prompt, 32)
    assert texts == dict.fromkeys(texts, texts[1])


@pytest.mark.parametrize(
    ("wire", "ratio"), [(FloatType.Q80, [1, 1]), (FloatType.Q80, [5, 3, 1]), (FloatType.F32, [1] * 5)], ids=str
)
def test_where_llama_cpp_is_sure_so_are_the_nodes(
    source: ModelSource, golden: dict[str, Any], wire: FloatType, ratio: list[float]
) -> None:
    """Quantized weights and activations: near-ties may fall either way, clear decisions may not."""
    clear = 0
    with nodes(source, ratio, BufferType.Q80, wire) as cluster:
        for text in golden["greedy"]["q4_1"]:
            prompt, generated = text["prompt_ids"], text["ids"]
            ids = prompt + generated
            cluster.run(Batch.of([Row(token, 0, i, i >= len(prompt) - 1) for i, token in enumerate(ids)]))
            best = cluster.programs[0].buffer("candidate_ids", len(generated) + 1)[:-1, 0]
            sure = np.array(text["margin"]) > 1.0
            assert (best == np.array(generated))[sure].all(), text["name"]
            clear += int(sure.sum())
    assert clear > 60


def perplexity(cluster: Nodes, ids: list[int], n_windows: int = 2) -> float:
    nll: list[npt.NDArray[np.float64]] = []
    for start in range(0, n_windows * WINDOW, WINDOW):
        window = np.array(ids[start : start + WINDOW])
        cluster.run(Batch.of([Row(int(token), 0, i, True) for i, token in enumerate(window)]))
        logits = np.concatenate([program.buffer("logits", WINDOW) for program in cluster.programs], axis=1)
        total = cluster.programs[0].buffer("log_sum_exp", WINDOW)[:-1, 0].astype(np.float64)
        nll.append(total - logits[np.arange(WINDOW - 1), window[1:]])
    return float(np.exp(np.concatenate(nll).mean()))


@pytest.fixture(scope="module")
def alone(source: ModelSource, golden: dict[str, Any]) -> dict[BufferType, float]:
    """Perplexity on one node."""
    found = {}
    for buffer_type in (BufferType.F32, BufferType.Q80):
        with nodes(source, [1], buffer_type, FloatType.F32) as one:
            found[buffer_type] = perplexity(one, golden["ppl_ids"])
    return found


@pytest.mark.parametrize(
    ("buffer_type", "wire", "algorithm", "within"),
    [
        (BufferType.F32, FloatType.F32, DIRECT, 0.0005),
        (BufferType.F32, FloatType.F16, DIRECT, 0.005),
        (BufferType.F32, FloatType.F16, TWO_HOPS, 0.005),
        (BufferType.Q80, FloatType.Q80, DIRECT, 0.01),
        (BufferType.Q80, FloatType.Q80, TWO_HOPS, 0.01),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_perplexity_is_that_of_one_node(
    source: ModelSource,
    golden: dict[str, Any],
    alone: dict[BufferType, float],
    buffer_type: BufferType,
    wire: FloatType,
    algorithm: Algorithm,
    within: float,
) -> None:
    with nodes(source, [4, 3, 2], buffer_type, wire, algorithm) as cluster:
        found = perplexity(cluster, golden["ppl_ids"])
    assert found == pytest.approx(alone[buffer_type], rel=within)
