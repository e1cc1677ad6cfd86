"""Matmuls by the shaders of every tier that the device offers, against the NumPy oracle, on odd shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import Activation as GateActivation
from dllama_gpu.graph.graph import Buffer, BufferType, Embed, GatedMatmul, Graph, Matmul
from dllama_gpu.model.float_type import FloatType
from tests.oracle.numpy_device import NumpyDevice
from tests.support.arrays import ArraySource
from tests.support.op_bench import OpBench, compare, normal
from tests.support.vulkan_settings import on_processor, rounding

if TYPE_CHECKING:
    from tests.support.plan_runner import PlanRunner


QUANTIZED = (FloatType.Q40, FloatType.Q41, FloatType.Q80)
ROW_COUNTS = (1, 2, 7, 32, 128)


@pytest.mark.parametrize("n_rows", ROW_COUNTS)
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_matmul_of_q80_rows(runner: PlanRunner, float_type: FloatType, n_rows: int) -> None:
    bench = OpBench(normal(n_rows, 576))
    x = bench.norm(576, BufferType.Q80)
    bench.weight("w", normal(75, 576, seed=1), float_type)
    bench.buffer("out", 83)
    bench.ops.append(Matmul(x, "w", "out", 5))
    compare(bench.run(runner), "out", n_rows, rounding(runner, float_type))


@pytest.mark.parametrize("n_rows", [1, 5, 33])
@pytest.mark.parametrize("float_type", list(FloatType))
def test_matmul_of_f32_rows(runner: PlanRunner, float_type: FloatType, n_rows: int) -> None:
    width = 96 if float_type.is_quantized else 77
    bench = OpBench(normal(n_rows, width))
    bench.weight("w", normal(40, width, seed=1), float_type)
    bench.buffer("out", 40)
    bench.ops.append(Matmul("x", "w", "out"))
    compare(bench.run(runner), "out", n_rows, rounding(runner, float_type))


def test_matrices_longer_than_a_shader_sees_are_cut(runner: PlanRunner) -> None:
    """Rows of 96 numbers in Q40 take 48 bytes of nibbles: 256 rows a shard."""
    from tests.support.plan_runner import PlanRunner

    limits = replace(runner.limits, max_range=20000)
    short = PlanRunner(
        runner.device, limits, runner.tier, replace(on_processor(runner.tier, runner.limits), limits=limits)
    )
    short.kernels = runner.kernels
    source = ArraySource()
    sizes = (("t", 600), ("g", 544), ("u", 544))
    weights = [source.add(name, normal(n, 96, seed=ord(name)), FloatType.Q40) for name, n in sizes]
    buffers = (Buffer("x", 96), Buffer("out", 600), Buffer("hidden", 544))
    steps = (Embed("t", "x"), Matmul("x", "t", "out"), GatedMatmul("x", "g", "u", "hidden"))
    graph = Graph(buffers, (), tuple(weights), steps, 600, 3, 1, 8)
    programs = short.compile(graph, source), NumpyDevice().compile(graph, source)
    assert len(programs[0].plan.segment(0, 1, 0)) > 8
    for program in programs:
        program.run(Batch.of([Row(token, 0, i) for i, token in enumerate((255, 256, 599))]))
    for name in ("x", "out", "hidden"):
        compare(programs, name, 3)


@pytest.mark.parametrize("type", [BufferType.F32, BufferType.Q80])
@pytest.mark.parametrize("n_rows", [1, 7, 33])
@pytest.mark.parametrize("float_type", [FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80])
def test_gated_matmul(runner: PlanRunner, float_type: FloatType, n_rows: int, type: BufferType) -> None:
    hidden = 96 if type is BufferType.Q80 else 72
    bench = OpBench(normal(n_rows, 64))
    x = bench.norm(64, BufferType.Q80) if type is BufferType.Q80 and float_type.is_quantized else "x"
    bench.weight("gate", normal(hidden, 64, seed=1), float_type)
    bench.weight("up", normal(hidden, 64, seed=2), float_type)
    bench.buffer("out", hidden, type)
    bench.ops.append(GatedMatmul(x, "gate", "up", "out"))
    exact = rounding(runner, float_type)
    compare(bench.run(runner), "out", n_rows, exact if type is BufferType.F32 else exact + 1 / 127)


@pytest.mark.parametrize("type", [BufferType.F32, BufferType.Q80])
def test_gated_matmul_of_two_number_formats(runner: PlanRunner, type: BufferType) -> None:
    bench = OpBench(normal(3, 64))
    bench.weight("gate", normal(64, 64, seed=1), FloatType.Q40)
    bench.weight("up", normal(64, 64, seed=2), FloatType.F16)
    bench.buffer("out", 64, type)
    bench.ops.append(GatedMatmul("x", "gate", "up", "out"))
    compare(bench.run(runner), "out", 3, tolerance=2e-5 if type is BufferType.F32 else 1 / 127)


@pytest.mark.parametrize("n_rows", [1, 17])
@pytest.mark.parametrize("up_type", [FloatType.Q40, FloatType.F16])
def test_gated_matmul_with_gelu(runner: PlanRunner, up_type: FloatType, n_rows: int) -> None:
    bench = OpBench(normal(n_rows, 64))
    bench.weight("gate", normal(64, 64, seed=1), FloatType.Q40)
    bench.weight("up", normal(64, 64, seed=2), up_type)
    bench.buffer("out", 64)
    bench.ops.append(GatedMatmul("x", "gate", "up", "out", GateActivation.GELU_TANH))
    compare(bench.run(runner), "out", n_rows, rounding(runner, up_type))


def test_matmul_of_activations_beyond_f16(runner: PlanRunner) -> None:
    bench = OpBench(normal(20, 64) * np.float32(1e5))
    bench.weight("w", normal(70, 64, seed=1), FloatType.F16)
    bench.buffer("out", 70)
    bench.ops.append(Matmul("x", "w", "out"))
    compare(bench.run(runner), "out", 20, rounding(runner, FloatType.F16))
