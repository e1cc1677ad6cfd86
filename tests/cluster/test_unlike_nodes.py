"""Every architecture over worker processes, and a GPU beside a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Program, Row
from dllama_gpu.graph.graph import BufferType, Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.open import open_model
from dllama_gpu.model.source import ModelSource
from dllama_gpu.model.spec import Architecture
from dllama_gpu.net.cluster import Cluster
from dllama_gpu.net.measure import measure_speed
from tests.support.architectures import architecture_spec, write_architecture_gguf
from tests.support.worker_command import WorkerCommand

TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 96, 20)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as things:
        yield things


def graphs(source: ModelSource, ratio: list[float]) -> list[Graph]:
    options = GraphOptions(max_rows=16, seq_len=40, buffer_type=BufferType.F32)
    return [build_graph(source.spec, source.tensors, options, shard) for shard in shard_by_ratio(source.spec, ratio)]


def logits(program: Program) -> npt.NDArray[np.float32]:
    """After every token: the prompt in two chunks, the last four one by one."""
    found = []
    for begin, end in ((0, 9), (9, 16), *((i, i + 1) for i in range(16, 20))):
        program.run(Batch.of([Row(TOKENS[i], 0, i, True) for i in range(begin, end)]))
        found.append(program.buffer("logits", end - begin).copy())
    return np.concatenate(found)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WorkerCommand]]:
    with ExitStack() as stack:
        started = []
        for number in range(2):
            worker = WorkerCommand(tmp_path_factory.mktemp(f"cache{number}"), "--device", "cpu")
            stack.callback(worker.stop)
            started.append(worker)
        yield started


@pytest.mark.parametrize("architecture", Architecture, ids=lambda architecture: architecture.value)
def test_three_nodes_compute_what_one_does(
    architecture: Architecture, workers: list[WorkerCommand], tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    write_architecture_gguf(path, architecture_spec(architecture))
    source = open_model(path)
    wanted = logits(CpuDevice(1).compile(graphs(source, [1])[0], source))
    with Cluster.connect([worker.address for worker in workers]) as cluster:
        program = cluster.load(source, graphs(source, [2, 1, 1]), CpuDevice(1), wire=FloatType.F32)
        found = logits(program)
    source.close()
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_a_gpu_and_a_cpu_share_a_model(
    workers: list[WorkerCommand], stack: ExitStack, tmp_path: Path, smollm2_gguf: Path
) -> None:
    try:
        from dllama_gpu.vulkan.device import VulkanDevice
        from dllama_gpu.vulkan.discovery import find_gpus

        gpu = find_gpus()[0].name
    except Exception as reason:
        pytest.skip(f"no Vulkan device, not even an imitated one: {reason}")
    worker = WorkerCommand(tmp_path / "cache", "--device", "vulkan:0")
    stack.callback(worker.stop)
    assert any(gpu in line for line in worker.log)
    source = open_model(smollm2_gguf)
    stack.callback(source.close)
    wanted = logits(CpuDevice(1).compile(graphs(source, [1])[0], source))
    # The CPU as root of the GPU, then the other way round.
    for device, address in ((CpuDevice(1), worker.address), (VulkanDevice(0), workers[0].address)):
        with Cluster.connect([address]) as cluster:
            program = cluster.load(source, graphs(source, [5, 4]), device, wire=FloatType.F32)
            found = logits(program)
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.999
        assert (found.argmax(axis=1) == wanted.argmax(axis=1)).mean() > 0.9
    with Cluster.connect([worker.address], measure=[FloatType.Q41]) as cluster:
        speed = measure_speed(CpuDevice(1), FloatType.Q41)
        assert cluster.profiles(speed, 1 << 30, FloatType.Q41)[1].bytes_per_second > 0
