"""Small graphs around one op, run by a `PlanRunner` and by the NumPy oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import Buffer, BufferType, Embed, Graph, KvCache, Op, RmsNorm, Rows
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.vulkan.limits import DeviceLimits, Tier
from dllama_gpu.vulkan.tuning import Tuning, for_device
from tests.oracle.numpy_device import NumpyDevice, NumpyProgram
from tests.support.arrays import ArraySource

if TYPE_CHECKING:
    from tests.support.plan_runner import PlannedProgram, PlanRunner

FloatArray = npt.NDArray[np.float32]

SMALL = DeviceLimits(subgroup_size=8, max_invocations=256, shared_bytes=16 << 10)  # the least that any device has
WIDE = replace(SMALL, subgroup_size=32)  # teams of several of this driver's subgroups


def on_processor(tier: Tier) -> Tuning:
    return for_device(replace(SMALL, is_cpu=True), tier)


@dataclass(frozen=True)
class Setting:
    """A tier with a device's usual choices."""

    name: str
    tier: Tier
    tuning: Tuning


SETTINGS = [
    Setting("base", Tier.BASE, for_device(WIDE, Tier.BASE)),
    # A device that is busy with little: short teams, large tiles; in between, tiles of both sizes.
    Setting("subgroup", Tier.SUBGROUP, replace(for_device(WIDE, Tier.SUBGROUP), busy_lanes=0)),
    Setting("dot", Tier.DOT, replace(for_device(SMALL, Tier.DOT), busy_lanes=300)),
    Setting("dot-processor", Tier.DOT, on_processor(Tier.DOT)),
    Setting("matrix", Tier.MATRIX, on_processor(Tier.MATRIX)),
]


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

    def graph(self, seq_len: int = 64, n_slots: int = 1) -> Graph:
        return Graph(
            tuple(self.buffers),
            tuple(self.caches),
            tuple(self.weights),
            tuple(self.ops),
            vocab_size=self.n_rows,
            max_rows=self.n_rows,
            n_slots=n_slots,
            seq_len=seq_len,
        )

    def compile(self, runner: PlanRunner, **sizes: int) -> tuple[PlannedProgram, NumpyProgram]:
        graph = self.graph(**sizes)
        return runner.compile(graph, self.source), NumpyDevice().compile(graph, self.source)

    def run(
        self, runner: PlanRunner, rows: Sequence[Row] | None = None, **sizes: int
    ) -> tuple[PlannedProgram, NumpyProgram]:
        rows = rows or [Row(r, 0, r, True) for r in range(self.n_rows)]
        programs = self.compile(runner, **{"seq_len": max(64, self.n_rows), **sizes})
        for program in programs:
            program.run(Batch.of(rows))
        return programs


def compare(programs: tuple[PlannedProgram, NumpyProgram], name: str, n_rows: int, tolerance: float = 2e-5) -> None:
    """Largest difference in units of the largest value."""
    found, wanted = (np.asarray(program.buffer(name, n_rows), np.float64) for program in programs)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def rounding(runner: PlanRunner, float_type: FloatType) -> float:
    """Tolerance of a matmul: on matrix units its factors are rounded to f16, but for F32 weights."""
    return 5e-4 if runner.tier is Tier.MATRIX and float_type is not FloatType.F32 else 2e-5


def normal(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
