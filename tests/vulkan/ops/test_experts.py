"""Mixtures of experts by the shaders of every tier, against the NumPy oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dllama_gpu.graph.graph import BufferType, ExpertGatedMatmul, ExpertMatmul, Matmul, TopExperts, Weight
from dllama_gpu.model.float_type import FloatType
from tests.support.op_bench import OpBench, compare, normal
from tests.support.vulkan_settings import on_processor

if TYPE_CHECKING:
    from tests.support.plan_runner import PlanRunner


@pytest.mark.parametrize(("n_experts", "k", "normalize"), [(5, 2, True), (128, 8, True), (60, 4, False)])
def test_experts_are_chosen_exactly(runner: PlanRunner, n_experts: int, k: int, normalize: bool) -> None:
    logits = normal(9, n_experts) * 3
    logits[1] = np.round(logits[1])  # equal ones: the lowest id first
    bench = OpBench(logits)
    bench.buffer("ids", k, BufferType.I32)
    bench.buffer("weights", k)
    bench.ops.append(TopExperts("x", "ids", "weights", normalize))
    programs = bench.run(runner)
    assert np.array_equal(programs[0].buffer("ids", 9), programs[1].buffer("ids", 9))
    compare(programs, "weights", 9)


@pytest.mark.parametrize("max_range", [128 << 20, 4 * 2 * 64 * 64])
@pytest.mark.parametrize(("float_type", "type"), [(FloatType.Q40, BufferType.Q80), (FloatType.F16, BufferType.F32)])
@pytest.mark.parametrize("n_rows", [1, 12])
def test_mixture_of_experts(
    runner: PlanRunner, n_rows: int, float_type: FloatType, type: BufferType, max_range: int
) -> None:
    """Experts 3 to 10 of 12 are here, in one piece or cut; the others' part is left out."""
    from tests.support.plan_runner import PlanRunner

    limits = replace(runner.limits, max_range=max_range)
    tuning = replace(on_processor(runner.tier, runner.limits), limits=limits)
    cut = PlanRunner(runner.device, limits, runner.tier, tuning)
    cut.kernels = runner.kernels
    dim, hidden, k, n_experts = 64, 64, 3, 8
    bench = OpBench(normal(n_rows, dim))
    x = bench.norm(dim, type)
    bench.weight("router", normal(12, dim, seed=1))
    experts = {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}
    for number, (name, (n, columns)) in enumerate(experts.items()):
        parts = [
            bench.source.add(f"{name}.{e}", normal(n, columns, seed=100 * number + e), float_type).parts[0]
            for e in range(n_experts)
        ]
        bench.weights.append(Weight(name, float_type, n_experts * n, columns, tuple(parts), n_experts))
    for name, width, kind in (
        ("logits", 12, BufferType.F32),
        ("ids", k, BufferType.I32),
        ("weights", k, BufferType.F32),
        ("hidden", k * hidden, type),
        ("out", dim, BufferType.F32),
    ):
        bench.buffer(name, width, kind)
    bench.ops += [
        Matmul("x", "router", "logits"),
        TopExperts("logits", "ids", "weights", True),
        ExpertGatedMatmul(x, "ids", "gate", "up", "hidden", 3),
        ExpertMatmul("hidden", "ids", "weights", "down", "out", 3),
    ]
    compare(bench.run(cut), "out", n_rows, tolerance=2e-5 if type is BufferType.F32 else 5e-3)
