"""The default model against what llama.cpp computes with it; `about` in the golden file says how far apart two correct
implementations may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.cpu.program import CpuProgram
from dllama_gpu.cpu.weights import load_weights
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import BufferType
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.open import open_model
from dllama_gpu.model.source import ModelSource

WINDOW = 512


@pytest.fixture(scope="module", params=["q4_1", "q4_0"])
def weights(request: pytest.FixtureRequest) -> Iterator[tuple[str, ModelSource]]:
    """One weight set: its name in the golden file, and the opened model."""
    fixture = {"q4_1": "smollm2_gguf", "q4_0": "smollm2_q40_m"}[request.param]
    path: Path = request.getfixturevalue(fixture)
    source = open_model(path)
    yield request.param, source
    source.close()


def compiled(source: ModelSource, buffer_type: BufferType, n_slots: int = 1) -> CpuProgram:
    options = GraphOptions(max_rows=WINDOW, seq_len=WINDOW, buffer_type=buffer_type, n_slots=n_slots)
    return CpuDevice().compile(build_graph(source.spec, source.tensors, options), source)


def forced_logits(program: CpuProgram, ids: list[int]) -> npt.NDArray[np.float32]:
    """Logits after every one of `ids`: (len(ids), vocab)."""
    program.run(Batch.of([Row(token, 0, position, True) for position, token in enumerate(ids)]))
    return program.buffer("logits", len(ids))


@pytest.mark.parametrize("buffer_type", [BufferType.Q80, BufferType.F32])
def test_teacher_forced_argmax_agrees(
    weights: tuple[str, ModelSource], golden: dict[str, Any], buffer_type: BufferType
) -> None:
    name, source = weights
    program = compiled(source, buffer_type)
    clear, agreeing_clear = 0, 0
    for text in golden["greedy"][name]:
        prompt, generated = text["prompt_ids"], text["ids"]
        logits = forced_logits(program, prompt + generated)[len(prompt) - 1 : -1]
        agrees = logits.argmax(axis=1) == np.array(generated)
        margin = np.array(text["margin"])
        assert agrees[margin > 1.0].all(), f"{text['name']}: another token where llama.cpp was sure"
        clear += int((margin > 0.3).sum())
        agreeing_clear += int((agrees & (margin > 0.3)).sum())
    assert agreeing_clear >= 0.98 * clear


@pytest.mark.parametrize(("buffer_type", "exact"), [(BufferType.Q80, False), (BufferType.F32, True)])
def test_perplexity_agrees(
    weights: tuple[str, ModelSource], golden: dict[str, Any], buffer_type: BufferType, exact: bool
) -> None:
    name, source = weights
    program = compiled(source, buffer_type)
    ids, nll, n_predicted = golden["ppl_ids"], 0.0, 0
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = ids[start : start + WINDOW]
        logits = forced_logits(program, window)[:-1].astype(np.float64)
        highest = logits.max(axis=1)
        log_sum_exp = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        assert np.abs(log_sum_exp - program.buffer("log_sum_exp", WINDOW)[:-1, 0]).max() < 1e-4
        nll += float((log_sum_exp - logits[np.arange(WINDOW - 1), window[1:]]).sum())
        n_predicted += WINDOW - 1
    reference = golden["ppl"][name]
    perplexity = float(np.exp(nll / n_predicted))
    assert n_predicted == reference["predicted"]
    assert perplexity == pytest.approx(reference["ppl"], rel=0.01)
    if exact:  # the golden file's figures for exact f32 arithmetic on these weights
        assert perplexity == pytest.approx({"q4_1": 23.18, "q4_0": 30.94}[name], rel=0.001)


def test_weights_are_kept_once(smollm2_gguf: Path) -> None:
    source = open_model(smollm2_gguf)
    graph = build_graph(source.spec, source.tensors, GraphOptions())
    loaded = load_weights(graph, source, _native.ThreadPool(1, False))
    source.close()
    stored = sum(tensor.n_bytes for tensor in source.tensors.values() if tensor.n_rows > 1)
    assert stored <= loaded.packed_bytes <= 1.001 * stored
