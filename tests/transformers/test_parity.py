"""Our logits beside those of the transformers library, for every architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

# ruff: noqa: E402
for package in ("torch", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed; `scripts/test transformers` installs it")

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Device, Program, Row
from dllama_gpu.graph.graph import BufferType, CacheType
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.convert import convert_to_m
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.open import open_model
from tests.support.local_cluster import LocalCluster
from tests.transformers.reference_models import CONFIGURATIONS, ReferenceModel, write_reference

Logits = npt.NDArray[np.float32]
RATIOS = {1: (1.0,), 3: (3.0, 1.0, 2.0)}
_CHUNKS = (16, 1, 1, 7, 20)  # rows of the steps: prompt chunks, single tokens


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ReferenceModel]:
    known: dict[str, ReferenceModel] = {}

    def written(name: str) -> ReferenceModel:
        if name not in known:
            known[name] = write_reference(name, tmp_path_factory.mktemp("reference") / "model", sum(_CHUNKS))
        return known[name]

    return written


@pytest.fixture(scope="session")
def vulkan() -> Device:
    """A Vulkan device, of the driver that needs no GPU where it is installed."""
    native = pytest.importorskip("dllama_gpu.vulkan._native", reason="built without Vulkan's headers (libvulkan-dev)")
    from dllama_gpu.vulkan.device import VulkanDevice

    try:
        found = native.devices()
    except native.VulkanError as error:
        pytest.skip(str(error))
    if not found:
        pytest.skip("no Vulkan driver is installed (Debian: mesa-vulkan-drivers)")
    return VulkanDevice(next((index for index, info in enumerate(found) if info.type == "cpu"), 0))


def logits_of(
    folder: Path,
    tokens: Sequence[int],
    weights: FloatType,
    n_nodes: int = 1,
    cache: CacheType = CacheType.F32,
    root: Device | None = None,
) -> Logits:
    """(n_tokens, vocab_size), computed in chunks by as many nodes of the CPU, or by `root` and others of the CPU."""
    source = open_model(folder, weights)
    try:
        options = GraphOptions(max_rows=32, seq_len=64, buffer_type=BufferType.Q80, cache_type=cache, n_candidates=4)
        shards = shard_by_ratio(source.spec, RATIOS[n_nodes]) if n_nodes > 1 else [None]
        graphs = [build_graph(source.spec, source.tensors, options, shard) for shard in shards]
        devices = [root or CpuDevice(1), *(CpuDevice(1) for _ in graphs[1:])]
        programs = [device.compile(graph, source) for device, graph in zip(devices, graphs, strict=True)]
        step = programs[0].run if n_nodes == 1 else LocalCluster(programs).run
        done, pieces = 0, []
        for n_rows in _CHUNKS:
            rows = [Row(int(tokens[i]), 0, i, wants_logits=True) for i in range(done, done + n_rows)]
            step(Batch.of(rows))
            slices = [program.buffer("logits", n_rows) for program in programs if _has_logits(program)]
            pieces.append(np.concatenate([piece.copy() for piece in slices], axis=1))
            done += n_rows
        return np.concatenate(pieces)
    finally:
        source.close()


def _has_logits(program: Program) -> bool:
    return any(buffer.name == "logits" for buffer in program.graph.buffers)


def relative_error(found: Logits, wanted: Logits) -> float:
    """The largest difference in units of the largest logit."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("n_nodes", [1, 3])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_f32_logits_are_those_of_transformers(
    reference: Callable[[str], ReferenceModel], name: str, n_nodes: int
) -> None:
    model = reference(name)
    found = logits_of(model.folder, model.tokens.tolist(), FloatType.F32, n_nodes)
    assert relative_error(found, model.logits) < 1e-4


@pytest.mark.parametrize("n_nodes", [1, 3])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_f32_logits_of_a_vulkan_device_are_those_of_transformers(
    reference: Callable[[str], ReferenceModel], vulkan: Device, name: str, n_nodes: int
) -> None:
    """Its KV cache is f16, that of the nodes beside it too."""
    model = reference(name)
    found = logits_of(model.folder, model.tokens.tolist(), FloatType.F32, n_nodes, CacheType.F16, vulkan)
    assert relative_error(found, model.logits) < 1e-3


@pytest.mark.parametrize("n_nodes", [1, 3])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_q40_logits_go_with_those_of_transformers(
    reference: Callable[[str], ReferenceModel],
    name: str,
    n_nodes: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Random weights leave many tokens nearly equal; what quantizing loses is a tenth of the logits' spread."""
    model = reference(name)
    found = logits_of(model.folder, model.tokens.tolist(), FloatType.Q40, n_nodes, CacheType.F16)
    record_property("top_1_agreement", float((found.argmax(axis=1) == model.logits.argmax(axis=1)).mean()))
    assert np.corrcoef(found.ravel(), model.logits.ravel())[0, 1] > 0.88


@pytest.mark.parametrize("name", ["llama", "llama 3.1", "qwen 3", "qwen 3 moe"])
@pytest.mark.parametrize("weights", [FloatType.F32, FloatType.Q80])
def test_an_m_file_made_of_a_folder_gives_the_folders_logits(
    reference: Callable[[str], ReferenceModel], tmp_path: Path, name: str, weights: FloatType
) -> None:
    model, path = reference(name), tmp_path / "model.m"
    source = open_model(model.folder, weights)
    convert_to_m(source, path, weights)
    source.close()
    tokens = model.tokens.tolist()
    assert np.array_equal(logits_of(path, tokens, weights), logits_of(model.folder, tokens, weights))


@pytest.mark.parametrize(("cache", "tolerance"), [(CacheType.F16, 1e-3), (CacheType.Q80, 0.03)])
def test_narrower_caches_stay_near(
    reference: Callable[[str], ReferenceModel], cache: CacheType, tolerance: float
) -> None:
    model = reference("qwen 3")
    found = logits_of(model.folder, model.tokens.tolist(), FloatType.F32, 1, cache)
    assert relative_error(found, model.logits) < tolerance
