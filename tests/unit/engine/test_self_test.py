from __future__ import annotations

from collections import Counter
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.self_test import CUT_BYTES, RandomSource, compare_devices, cut_cases, tile_cases, usual_cases
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, ExchangeHandler, LoadProgress, Program
from dllama_gpu.graph.graph import Graph
from dllama_gpu.model.source import ModelSource
from dllama_gpu.vulkan.dispatch import Dispatch
from dllama_gpu.vulkan.limits import DeviceLimits, MatrixSize, Tier
from dllama_gpu.vulkan.plan import plan_program
from dllama_gpu.vulkan.tuning import MATRIX_TILES


class BrokenDevice:
    """The CPU, with one buffer wrong for batches of some size."""

    name = "broken"

    def __init__(self, buffer: str, n_rows: int, wrong: float) -> None:
        self.broken, self.n_rows, self.wrong = buffer, n_rows, wrong

    def compile(self, graph: Graph, source: ModelSource, progress: LoadProgress | None = None) -> BrokenProgram:
        return BrokenProgram(CpuDevice(1).compile(graph, source), self)


class BrokenProgram:
    def __init__(self, program: Program, device: BrokenDevice) -> None:
        self.program, self.device = program, device
        self.graph = program.graph

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        self.program.run(batch, exchange)

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        found = self.program.buffer(name, n_rows).copy()
        if name == self.device.broken and n_rows == self.device.n_rows:
            found[-1, -1] += self.device.wrong
        return found


def test_kernels_of_all_instruction_sets_pass() -> None:
    assert compare_devices(CpuDevice(1, "plain"), CpuDevice(1)) == []


@pytest.mark.parametrize("wrong", [10.0, np.nan, np.inf])
@pytest.mark.parametrize("n_rows", [1, 5, 40])
def test_one_wrong_number_is_found(n_rows: int, wrong: float) -> None:
    failures = compare_devices(BrokenDevice("logits", n_rows, wrong), CpuDevice(1))
    assert [failure.case for failure in failures] == ["best candidates"]
    assert failures[0].what.startswith(f"{n_rows} rows differ")


def test_an_error_is_a_failure_of_its_case() -> None:
    class Refusing:
        name = "refusing"

        def compile(self, graph: Graph, source: ModelSource, progress: LoadProgress | None = None) -> Program:
            if graph.caches:
                raise DllamaError("no attention here")
            return CpuDevice(1).compile(graph, source)

    failures = compare_devices(Refusing(), CpuDevice(1))
    assert {failure.what for failure in failures} == {"no attention here"}
    assert all("attention" in failure.case for failure in failures)


def test_the_self_test_runs_the_kernels_that_large_models_need() -> None:
    """Teams of several subgroups on a graphics card, and matrices in several parts."""
    source = RandomSource()
    card = DeviceLimits(subgroup_size=32, max_invocations=1024, shared_bytes=48 << 10)
    for tier, shader in ((Tier.SUBGROUP, "matvec_subgroup"), (Tier.DOT, "matvec_dot")):
        found = [
            item.specialization
            for case in usual_cases(source)
            for item in plan_program(case.graph, card, tier).segment(0, 1, 1)
            if isinstance(item, Dispatch) and item.shader == shader
        ]
        assert max(constants[2] for constants in found) == 256, "the longest team there is"
    for case in cut_cases(source):
        items = plan_program(case.graph, replace(card, max_range=CUT_BYTES), Tier.DOT).segment(0, 1, 1)
        assert Counter(item.shader for item in items if isinstance(item, Dispatch)).most_common()[-1][1] > 1


def test_the_self_test_meets_every_tile_of_matrix_units() -> None:
    source, card = RandomSource(), DeviceLimits(32, 1024, 48 << 10, matrix=MatrixSize(16, 16, 16))
    for shader in ("matmul_matrix", "gated_matmul_matrix"):
        found = {
            item.specialization[2:6]
            for cases in (usual_cases, tile_cases)
            for case in cases(source)
            for n_rows in case.row_counts
            for item in plan_program(case.graph, card, Tier.MATRIX).segment(0, n_rows, 1)
            if isinstance(item, Dispatch) and item.shader == shader
        }
        assert found == {astuple(tile) for tile in MATRIX_TILES}


def test_tile_cases_are_computed_alike_by_all_kernels() -> None:
    assert compare_devices(CpuDevice(1), CpuDevice(1, kernels="plain"), tile_cases) == []
