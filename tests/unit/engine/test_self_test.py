from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.self_test import compare_devices
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, ExchangeHandler, LoadProgress, Program
from dllama_gpu.graph.graph import Graph
from dllama_gpu.model.source import ModelSource


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
