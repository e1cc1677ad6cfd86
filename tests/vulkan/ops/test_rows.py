"""Ops that work row by row, by the shaders of every tier, against the NumPy oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import Buffer, BufferType, Embed, Graph, RmsNorm, RopeAngles, Rows, TopCandidates
from dllama_gpu.model.float_type import FloatType
from tests.oracle.numpy_device import NumpyDevice
from tests.support.arrays import ArraySource
from tests.support.op_bench import OpBench, compare, normal

if TYPE_CHECKING:
    from tests.support.plan_runner import PlanRunner


@pytest.mark.parametrize("float_type", list(FloatType))
def test_embedding(runner: PlanRunner, float_type: FloatType) -> None:
    source = ArraySource()
    width = 96 if float_type.is_quantized else 75
    table = source.add("table", normal(50, width), float_type)
    graph = Graph((Buffer("x", width),), (), (table,), (Embed("table", "x"),), 50, 4, 1, 8)
    programs = runner.compile(graph, source), NumpyDevice().compile(graph, source)
    for program in programs:
        program.run(Batch.of([Row(token, 0, i) for i, token in enumerate((0, 17, 49, 3))]))
    compare(programs, "x", 4, tolerance=1e-7)


@pytest.mark.parametrize("type", [BufferType.F32, BufferType.Q80])
@pytest.mark.parametrize("n_rows", [1, 7, 32])
def test_rms_norm_adds_then_scales(runner: PlanRunner, n_rows: int, type: BufferType) -> None:
    width = 576 if type is BufferType.Q80 else 75
    bench = OpBench(normal(n_rows, width) * 3)
    bench.weight("w", normal(width, seed=2))
    bench.buffer("first", width)
    bench.buffer("second", width, type)
    bench.ops += [RmsNorm("x", None, "w", "first", 1e-5), RmsNorm("x", "first", "w", "second", 1e-6)]
    programs = bench.run(runner)
    compare(programs, "x", n_rows)
    # One quant of a block may fall on the other side of a half.
    compare(programs, "second", n_rows, tolerance=2e-5 if type is BufferType.F32 else 1 / 127)


def test_q80_rows_are_what_the_codec_makes_of_them(runner: PlanRunner) -> None:
    width = 128
    inputs = normal(20, width)
    inputs[3] = 0
    inputs[4, :32] = 1e-8  # the scale underflows f16
    inputs[5, 40] = 1e4
    bench = OpBench(inputs)
    bench.weight("w", np.ones(width, np.float32))
    bench.buffer("normed", width)
    bench.buffer("quantized", width, BufferType.Q80)
    bench.ops += [RmsNorm("x", None, "w", "normed", 1e-5), RmsNorm("x", None, "w", "quantized", 1e-5)]
    program, oracle = bench.run(runner)
    oracle.write("quantized", program.buffer("normed", 20).astype(np.float64))
    assert np.array_equal(program.buffer("quantized", 20), oracle.buffer("quantized", 20).astype(np.float32))


def test_rms_norm_gathers_the_rows_that_want_logits(runner: PlanRunner) -> None:
    bench = OpBench(normal(6, 64))
    bench.weight("w", normal(64, seed=1))
    bench.buffer("last", 64, rows=Rows.LOGITS)
    bench.ops.append(RmsNorm("x", "x", "w", "last", 1e-5))
    rows = [Row(r, 0, r, wants_logits=r in (1, 4)) for r in range(6)]
    programs = bench.run(runner, rows)
    compare(programs, "last", 2)
    compare(programs, "x", 6)


def test_scaled_embeddings_and_angles(runner: PlanRunner) -> None:
    bench = OpBench(normal(3, 64))
    bench.buffer("angles", 8)
    bench.ops = [Embed("inputs", "x", scale=24.0), RopeAngles((1.0, 0.5, 0.25, 0.125), "angles", scale=1.25)]
    programs = bench.run(runner)
    compare(programs, "x", 3, tolerance=1e-7)
    compare(programs, "angles", 3, tolerance=5e-7)


@pytest.mark.parametrize(("n_logits", "k"), [(49152 // 8 + 5, 64), (4097, 1), (50, 50), (1500, 500)])
def test_candidates_are_exact(runner: PlanRunner, n_logits: int, k: int) -> None:
    logits = normal(4, n_logits) * 5
    logits[1] = np.round(logits[1])  # many equal ones: the lowest ids count
    logits[2] = 0.0
    logits[2, ::2] = -0.0
    logits[3] = np.sort(logits[3])  # each one enters the list
    bench = OpBench(logits)
    bench.buffers = [Buffer("x", n_logits, rows=Rows.LOGITS)]
    bench.buffer("all", n_logits)
    bench.ops = [Embed("inputs", "all")]
    bench.weight("ones", np.ones(n_logits, np.float32))
    bench.buffer("values", k, rows=Rows.LOGITS)
    bench.buffer("ids", k, BufferType.I32, Rows.LOGITS)
    bench.buffer("log_sum_exp", 1, rows=Rows.LOGITS)
    bench.ops += [RmsNorm("all", None, "ones", "x", 1e-5), TopCandidates("x", "values", "ids", "log_sum_exp", 7)]
    temperatures = (1.0, 0.3, 2.0, 1.0)
    rows = [Row(r, 0, r, True, temperature) for r, temperature in enumerate(temperatures)]
    program, oracle = bench.run(runner, rows)
    oracle.values["x"] = program.buffer("x", 4).astype(np.float64)
    oracle.top_candidates(bench.ops[-1], Batch.of(rows))
    assert np.array_equal(program.buffer("ids", 4), oracle.values["ids"])
    assert np.array_equal(program.buffer("values", 4), oracle.values["values"])
    compare((program, oracle), "log_sum_exp", 4)
