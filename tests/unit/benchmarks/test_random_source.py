"""Weights that are made while they are loaded."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.random_source import RandomSource
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.options import GraphOptions
from tests.support.models import small_spec


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_random_weights_runs_with_activations_of_usual_size(tied: bool) -> None:
    source = RandomSource("small", small_spec(tied_embeddings=tied))
    graph = build_graph(source.spec, source.tensors, GraphOptions(max_rows=4, seq_len=8))
    program = CpuDevice(1).compile(graph, source)
    program.run(Batch.of([Row(i, 0, i, True) for i in range(4)]))
    deviation = program.buffer("logits", 4).std()
    assert 0.1 < deviation < 10
    assert ("head" in source.tensors) is not tied


def test_a_tensor_is_the_same_each_time_it_is_read() -> None:
    source = RandomSource("small", small_spec())
    first = source.read("layers.0.q").copy()
    source.read("layers.0.down")
    assert np.array_equal(first, source.read("layers.0.q"))
