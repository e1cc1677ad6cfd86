"""Every architecture on a Vulkan device beside the NumPy oracle, alone and with a CPU node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Program, Row
from dllama_gpu.graph.graph import CacheType
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import Architecture
from tests.oracle.numpy_device import NumpyDevice
from tests.support.architectures import architecture_spec, random_source
from tests.support.local_cluster import LocalCluster

if TYPE_CHECKING:
    from dllama_gpu.vulkan.device import VulkanDevice

N_TOKENS = 20
ROWS = [Row((7 * i * i + 3 * i) % 96, 1, i, wants_logits=True) for i in range(N_TOKENS)]


def options(cache_type: CacheType = CacheType.F16) -> GraphOptions:
    return GraphOptions(max_rows=N_TOKENS, seq_len=32, n_candidates=4, n_slots=2, cache_type=cache_type)


def logits(program: Program) -> npt.NDArray[np.float64]:
    """After a prompt of 14 tokens and 6 that follow one by one."""
    parts = []
    for begin, end in ((0, 14), *((i, i + 1) for i in range(14, N_TOKENS))):
        program.run(Batch.of(ROWS[begin:end]))
        parts.append(np.array(program.buffer("logits", end - begin), np.float64))
    return np.concatenate(parts)


def assert_close(found: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64], tolerance: float) -> None:
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("weights", [FloatType.F32, FloatType.Q40])
@pytest.mark.parametrize("architecture", Architecture)
def test_logits_agree_with_the_oracle(
    vulkan_device: Callable[[], VulkanDevice], architecture: Architecture, weights: FloatType
) -> None:
    spec = architecture_spec(architecture, weights)
    source = random_source(spec)
    graph = build_graph(spec, source.tensors, options())
    found = logits(vulkan_device().compile(graph, source))
    # Where rows are quantized, a value near a half moves a whole quant, and later layers see it.
    assert_close(found, logits(NumpyDevice().compile(graph, source)), 2e-3 if weights is FloatType.F32 else 0.08)


@pytest.mark.parametrize("cache_type", [CacheType.Q80, CacheType.F32])
def test_other_formats_of_keys_and_values(vulkan_device: Callable[[], VulkanDevice], cache_type: CacheType) -> None:
    spec = architecture_spec(Architecture.LLAMA)
    source = random_source(spec)
    graph = build_graph(spec, source.tensors, options(cache_type))
    found = logits(vulkan_device().compile(graph, source))
    assert_close(found, logits(NumpyDevice().compile(graph, source)), 0.02 if cache_type is CacheType.Q80 else 2e-3)


@pytest.mark.parametrize("architecture", [Architecture.QWEN3_MOE, Architecture.GEMMA3])
def test_a_gpu_and_a_processor_compute_what_one_node_does(
    vulkan_device: Callable[[], VulkanDevice], architecture: Architecture
) -> None:
    spec = architecture_spec(architecture)
    source = random_source(spec)
    wanted = logits(CpuDevice(1).compile(build_graph(spec, source.tensors, options()), source))
    graphs = [build_graph(spec, source.tensors, options(), shard) for shard in shard_by_ratio(spec, (1, 2))]
    programs = [
        device.compile(graph, source) for device, graph in zip((CpuDevice(1), vulkan_device()), graphs, strict=True)
    ]
    LocalCluster(programs).run(Batch.of(ROWS))
    slices = [np.array(program.buffer("logits", N_TOKENS), np.float64) for program in programs]
    assert_close(np.concatenate(slices, axis=1), wanted, 2e-3)
