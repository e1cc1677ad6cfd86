"""Speeds out of times, without a clock: a device whose steps take what the test says."""

from __future__ import annotations

import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Program
from dllama_gpu.graph.graph import Graph
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net import measure
from dllama_gpu.net.measure import measure_speed


class Stopwatch:
    """Stands in for `_best_seconds`: an op costs `op_seconds`, and weights that no cache holds what the rates say."""

    def __init__(self, op_seconds: float, bytes_per_second: float, flops_per_second: float = 1e12) -> None:
        self.op_seconds = op_seconds
        self.bytes_per_second = bytes_per_second
        self.flops_per_second = flops_per_second

    def __call__(self, program: Program, n_rows: int) -> float:
        graph = program.graph
        if graph.weight_bytes() < 4 << 20:
            return self.op_seconds * len(graph.steps)
        matrices = [weight for weight in graph.weights if weight.n_rows > 1 and weight.name != "embedding"]
        flops = 2.0 * n_rows * sum(weight.n_rows * weight.n_columns for weight in matrices)
        seconds = graph.weight_bytes() / self.bytes_per_second if n_rows == 1 else flops / self.flops_per_second
        return self.op_seconds * len(graph.steps) + seconds


class Planned:
    """A program that is never run."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph


class Paper(CpuDevice):
    """Compiles nothing; keeps how many bytes of weights it was given. Wide layers are too much for a small one."""

    def __init__(self, room: int = 1 << 40) -> None:
        super().__init__(1)
        self.room = room
        self.compiled: list[int] = []

    def compile(self, graph: Graph, source: ModelSource, progress: object = None) -> Planned:  # type: ignore[override]
        if graph.weight_bytes() > self.room:
            raise DllamaError("too little memory")
        self.compiled.append(graph.weight_bytes())
        return Planned(graph)


def measured(
    monkeypatch: pytest.MonkeyPatch, stopwatch: Stopwatch, device: Paper, type: FloatType = FloatType.Q40
) -> measure.NodeSpeed:
    monkeypatch.setattr(measure, "_best_seconds", stopwatch)
    return measure_speed(device, type)


@pytest.mark.parametrize("type", [FloatType.F32, FloatType.Q40])
def test_ops_are_not_counted_as_reading(monkeypatch: pytest.MonkeyPatch, type: FloatType) -> None:
    speed = measured(monkeypatch, Stopwatch(2e-6, 20e9), Paper(), type)
    assert speed.bytes_per_second == pytest.approx(20e9, rel=0.05)
    assert speed.flops_per_second == pytest.approx(1e12, rel=0.05)
    assert speed.op_seconds == pytest.approx(2e-6)


@pytest.mark.parametrize("type", [FloatType.F32, FloatType.Q40])
def test_a_large_gpu_is_measured_with_a_wide_layer(monkeypatch: pytest.MonkeyPatch, type: FloatType) -> None:
    device = Paper()
    speed = measured(monkeypatch, Stopwatch(5e-6, 3e12), device, type)
    assert speed.bytes_per_second == pytest.approx(3e12, rel=0.1)
    assert 150 << 20 < max(device.compiled) < 210 << 20


def test_without_room_for_it_the_narrow_layers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Paper(room=100 << 20)
    speed = measured(monkeypatch, Stopwatch(5e-6, 3e12), device)
    assert max(device.compiled) < 100 << 20
    assert 0 < speed.bytes_per_second < 3e12


def test_disturbed_times_make_nothing_endlessly_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    def slower_without_weights(program: Program, n_rows: int) -> float:
        return 1e-3 if program.graph.weight_bytes() > 1 << 20 else 2e-3

    device = Paper()
    monkeypatch.setattr(measure, "_best_seconds", slower_without_weights)
    speed = measure_speed(device, FloatType.Q40)
    assert speed.bytes_per_second <= 4 * max(device.compiled) / 1e-3
