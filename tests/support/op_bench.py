"""Small graphs around one op, run by a device and by the NumPy oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import Buffer, BufferType, Embed, Graph, KvCache, Op, RmsNorm, Rows
from dllama_gpu.model.float_type import FloatType
from tests.oracle.numpy_device import NumpyDevice, NumpyProgram
from tests.support.arrays import ArraySource

FloatArray = npt.NDArray[np.float32]
P = TypeVar("P", bound="Runnable", covariant=True)


class Runnable(Protocol):
    """A compiled graph: a device's program, or a plan that a test carries out."""

    def run(self, batch: Batch) -> None: ...

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]: ...


class Compiler(Protocol[P]):
    """A device, or a runner of plans."""

    def compile(self, graph: Graph, source: ArraySource) -> P: ...


class OpBench:
    """Builds a graph whose first op copies prepared rows into the buffer `x`: row r holds `inputs[r]`."""

    def __init__(self, inputs: FloatArray) -> None:
        self.source = ArraySource()
        self.n_rows, width = inputs.shape
        self.weights = [self.source.add("inputs", inputs)]
        self.buffers = [Buffer("x", width)]
        self.caches: list[KvCache] = []
        self.ops: list[Op] = [Embed("inputs", "x")]

    def weight(self, name: str, values: FloatArray, float_type: FloatType = FloatType.F32) -> str:
        self.weights.append(self.source.add(name, values, float_type))
        return name

    def buffer(self, name: str, width: int, type: BufferType = BufferType.F32, rows: Rows = Rows.ALL) -> str:
        self.buffers.append(Buffer(name, width, type, rows))
        return name

    def norm(self, width: int, type: BufferType) -> str:
        """Norms x into a buffer of the type; weights of one keep the values of the order of one."""
        self.weight("ones", np.ones(width, np.float32))
        self.buffer("input", width, type)
        self.ops.append(RmsNorm("x", None, "ones", "input", 1e-5))
        return "input"

    def graph(self, seq_len: int = 64, n_slots: int = 1, max_rows: int | None = None) -> Graph:
        return Graph(
            tuple(self.buffers),
            tuple(self.caches),
            tuple(self.weights),
            tuple(self.ops),
            vocab_size=self.n_rows,
            max_rows=max_rows or self.n_rows,
            n_slots=n_slots,
            seq_len=seq_len,
        )

    def compile(self, device: Compiler[P], **sizes: int) -> tuple[P, NumpyProgram]:
        graph = self.graph(**sizes)
        return device.compile(graph, self.source), NumpyDevice().compile(graph, self.source)

    def run(self, device: Compiler[P], rows: Sequence[Row] | None = None, **sizes: int) -> tuple[P, NumpyProgram]:
        rows = rows or [Row(r, 0, r, True) for r in range(self.n_rows)]
        programs = self.compile(device, **{"seq_len": max(64, self.n_rows), **sizes})
        for program in programs:
            program.run(Batch.of(rows))
        return programs


def compare(programs: tuple[Runnable, NumpyProgram], name: str, n_rows: int, tolerance: float = 2e-5) -> None:
    """Largest difference in units of the largest value."""
    found, wanted = (np.asarray(program.buffer(name, n_rows), np.float64) for program in programs)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def normal(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
