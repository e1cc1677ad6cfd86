"""A device with too little memory and the CPU share a model; here both are CPUs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine import split_device as split_module
from dllama_gpu.engine.split_device import SplitDevice
from dllama_gpu.engine.split_program import SplitProgram
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Device, LoadProgress, Program, Row
from dllama_gpu.graph.graph import BufferType, Graph
from dllama_gpu.graph.load import measure
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.measure import NodeSpeed
from tests.support.models import write_random_m

TOKENS = [5, 99, 17, 42, 3, 77, 120, 8]
SHAPE = {
    "dim": 128,
    "hidden_dim": 256,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 160,
    "max_seq_len": 64,
}


class SmallGpu:
    """The CPU as a device with memory of its own; keeps what it was given to compile."""

    name = "small"
    is_graphics_card = True

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.compiled: list[Graph] = []

    def free_memory(self) -> int:
        return self.memory

    def bytes_of(self, graph: Graph) -> int:
        return measure(graph).memory_bytes + 1000

    def compile(self, graph: Graph, source: ModelSource, progress: LoadProgress | None = None) -> Program:
        assert self.bytes_of(graph) <= self.memory
        self.compiled.append(graph)
        return CpuDevice(1).compile(graph, source, progress)


@pytest.fixture(scope="module", params=[FloatType.F32, FloatType.Q40])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    path = tmp_path_factory.mktemp("model") / "model.m"
    write_random_m(path, **SHAPE, weight_type=request.param, seed=4)
    file = MFile(path)
    yield file
    file.close()


@pytest.fixture(autouse=True)
def fast_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured speeds: a GPU ten times as fast as the CPU, and a bus that costs next to nothing."""

    def speed(device: Device, _: FloatType) -> NodeSpeed:
        factor = 10.0 if isinstance(device, SmallGpu) else 1.0
        return NodeSpeed(1e6 * factor, 1e9 * factor, 1e-6)

    monkeypatch.setattr(split_module, "measure_speed", speed)


def split(gpu: SmallGpu, told: list[str] | None = None, **options: int) -> SplitDevice:
    tell = (told if told is not None else []).append
    return SplitDevice(gpu, lambda: CpuDevice(1), lambda: 1 << 30, tell, **options)


def graph_of(source: ModelSource) -> Graph:
    options = GraphOptions(max_rows=8, seq_len=32, n_slots=2, buffer_type=BufferType.F32, n_candidates=6)
    return build_graph(source.spec, source.tensors, options)


def run(program: Program) -> list[np.ndarray]:
    """Everything a user sees of a prompt and of two tokens after it."""
    found = []
    for start, end in ((0, 6), (6, 7), (7, 8)):
        program.run(Batch.of([Row(TOKENS[p], 1, p, p == end - 1) for p in range(start, end)]))
        found += [program.buffer(name, 1).copy() for name in ("logits", "candidate_values", "log_sum_exp")]
        found.append(program.buffer("candidate_ids", 1).astype(np.float64))
    program.run(Batch.of([Row(1, 0, 0)]))  # no row wants logits
    return found


def assert_same(program: Program, source: ModelSource) -> None:
    for found, wanted in zip(run(program), run(CpuDevice(1).compile(graph_of(source), source)), strict=True):
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_what_fits_is_computed_on_the_gpu_alone(source: ModelSource) -> None:
    gpu, graph = SmallGpu(1 << 30), graph_of(source)
    assert not isinstance(split(gpu).compile(graph, source), SplitProgram)
    assert gpu.compiled == [graph]


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
def test_what_does_not_fit_is_shared_within_the_gpus_memory(source: ModelSource, share: float) -> None:
    graph = graph_of(source)
    gpu = SmallGpu(round(share * measure(graph).memory_bytes))
    told: list[str] = []
    calls: list[tuple[int, int]] = []
    program = split(gpu, told).compile(graph, source, lambda done, total: calls.append((done, total)))
    assert isinstance(program, SplitProgram)
    assert program.graph == graph
    assert len(told) == 2
    assert gpu.compiled[0].weight_bytes() > 0.2 * share * graph.weight_bytes()
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
    assert_same(program, source)


def test_a_limit_is_kept_where_more_is_free(source: ModelSource) -> None:
    graph = graph_of(source)
    limit = measure(graph).memory_bytes // 2
    gpu = SmallGpu(1 << 30)
    assert isinstance(split(gpu, max_memory=limit).compile(graph, source), SplitProgram)
    assert gpu.bytes_of(gpu.compiled[0]) <= limit


def test_a_gpu_without_memory_leaves_all_to_the_cpu(source: ModelSource) -> None:
    gpu, told = SmallGpu(2000), []
    assert_same(split(gpu, told).compile(graph_of(source), source), source)
    assert gpu.compiled == []
    assert len(told) == 1


@pytest.mark.parametrize(("layers", "on_gpu"), [(0, False), (1, True), (2, True), (3, True)])
def test_layers_can_be_given_by_hand(source: ModelSource, layers: int, on_gpu: bool) -> None:
    gpu = SmallGpu(1 << 30)
    program = split(gpu, gpu_layers=layers).compile(graph_of(source), source)
    assert isinstance(program, SplitProgram) == (layers in (1, 2))
    assert bool(gpu.compiled) == on_gpu
    assert_same(program, source)


def test_more_layers_than_there_are_is_a_sentence(source: ModelSource) -> None:
    with pytest.raises(DllamaError, match="--gpu-layers is 4, but the model has 3 layers"):
        split(SmallGpu(1 << 30), gpu_layers=4).compile(graph_of(source), source)


def test_a_model_too_large_for_both_is_a_sentence(source: ModelSource) -> None:
    device = SplitDevice(SmallGpu(20000), lambda: CpuDevice(1), lambda: 20000, print)
    with pytest.raises(DllamaError, match="together are too small"):
        device.compile(graph_of(source), source)


def test_memory_that_both_share_is_counted_once(source: ModelSource) -> None:
    graph = graph_of(source)
    whole = SmallGpu(0).bytes_of(graph)
    gpu = SmallGpu(whole * 3 // 4)

    def device(machine: int) -> SplitDevice:
        return SplitDevice(gpu, lambda: CpuDevice(1), lambda: machine, print, shares_memory=True)

    assert device(whole).free_memory() == whole
    assert isinstance(device(whole).compile(graph, source), SplitProgram)
    with pytest.raises(DllamaError, match="this machine, whose memory small shares"):
        device(whole - 1).compile(graph, source)


def test_a_failure_on_one_device_ends_the_step_on_both(source: ModelSource) -> None:
    graph = graph_of(source)
    program = split(SmallGpu(1 << 30), gpu_layers=1).compile(graph, source)
    assert isinstance(program, SplitProgram)

    class Failing:
        def __init__(self, program: Program) -> None:
            self.graph = program.graph

        def run(self, *_: object) -> None:
            raise DllamaError("the GPU is gone")

    for rank in range(2):
        programs = list(program._programs)
        programs[rank] = Failing(programs[rank])  # type: ignore[assignment]
        broken = SplitProgram(graph, programs)
        with pytest.raises(DllamaError, match="the GPU is gone"):
            broken.run(Batch.of([Row(1, 0, 0)]))
        with pytest.raises(DllamaError, match="an earlier step failed"):
            broken.run(Batch.of([Row(1, 0, 0)]))
