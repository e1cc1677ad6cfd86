"""Whole models on a Vulkan device: against the oracle, whatever the batch, and together with CPU nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Device, Program, Row
from dllama_gpu.graph.graph import BufferType, CacheType, Rows
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.source import ModelSource
from dllama_gpu.model.spec import RopeScaling
from tests.oracle.numpy_device import NumpyDevice
from tests.support.local_cluster import LocalCluster
from tests.support.models import write_random_m

if TYPE_CHECKING:
    from dllama_gpu.vulkan.device import VulkanDevice
    from dllama_gpu.vulkan.limits import Tier

    Devices = Callable[..., VulkanDevice]

TIERS = ("BASE", "SUBGROUP", "DOT")
TOKENS = [int(token) for token in np.random.default_rng(7).integers(0, 128, 40)]
SHAPE = {
    "dim": 96,
    "hidden_dim": 160,
    "n_layers": 3,
    "n_heads": 6,
    "n_kv_heads": 3,
    "head_dim": 16,
    "vocab_size": 128,
    "max_seq_len": 64,
}


def tier(name: str) -> Tier:
    from dllama_gpu.vulkan.limits import Tier

    return Tier[name]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    path = tmp_path_factory.mktemp("model") / "small.m"
    write_random_m(path, **SHAPE, weight_type=FloatType.Q40, seed=3)
    file = MFile(path)
    yield file
    file.close()


def options(buffer_type: BufferType = BufferType.F32, max_rows: int = 40) -> GraphOptions:
    return GraphOptions(max_rows=max_rows, seq_len=48, buffer_type=buffer_type, n_candidates=8)


def logits(program: Program, chunk: int = 40) -> npt.NDArray[np.float32]:
    """Logits of all TOKENS, computed in chunks of rows: (40, vocab)."""
    rows = [Row(token, 0, position, True) for position, token in enumerate(TOKENS)]
    parts = []
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        program.run(Batch.of(part))
        parts.append(program.buffer("logits", len(part)).copy())
    return np.concatenate(parts)


def assert_close(found: npt.NDArray[np.floating], wanted: npt.NDArray[np.floating], tolerance: float = 1e-3) -> None:
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
    assert np.sqrt(np.mean((found - wanted) ** 2)) <= tolerance / 5 * np.sqrt(np.mean(wanted**2))


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("float_type", [FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80])
@pytest.mark.parametrize("buffer_type", [BufferType.F32, BufferType.Q80])
def test_logits_agree_with_the_oracle(
    vulkan_device: Devices, tmp_path: Path, name: str, buffer_type: BufferType, float_type: FloatType
) -> None:
    device = vulkan_device(tier(name))
    path = tmp_path / "model.m"
    scaling = RopeScaling(8.0, 1.0, 4.0, 16)
    write_random_m(path, **SHAPE, weight_type=float_type, rope_scaling=scaling, seed=1)
    source = MFile(path)
    graph = build_graph(source.spec, source.tensors, options(buffer_type))
    program = device.compile(graph, source)
    wanted = logits(NumpyDevice().compile(graph, source))
    source.close()
    # Where rows are quantized, a value near a half moves a whole quant, and later layers see it.
    tolerance = 0.05 if buffer_type is BufferType.Q80 and float_type.is_quantized else 2e-3
    assert_close(logits(program), wanted, tolerance)
    assert_close(logits(program, chunk=1)[:5], wanted[:5], tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 16, 17])
def test_every_division_of_a_prompt_into_chunks_gives_the_same(
    vulkan_device: Devices, source: ModelSource, chunk: int
) -> None:
    program = vulkan_device().compile(build_graph(source.spec, source.tensors, options()), source)
    assert_close(logits(program, chunk), logits(program))


def test_two_users_in_one_step_get_what_each_gets_alone(vulkan_device: Devices, source: ModelSource) -> None:
    graph = build_graph(source.spec, source.tensors, replace(options(), n_slots=2))
    program = vulkan_device().compile(graph, source)

    def final(rows: list[Row]) -> npt.NDArray[np.float32]:
        program.run(Batch.of(rows))
        return program.buffer("logits", sum(row.wants_logits for row in rows)).copy()

    first = [Row(token, 0, p, p == 11) for p, token in enumerate(TOKENS[:12])]
    second = [Row(token, 1, p, p == 6) for p, token in enumerate(TOKENS[20:27])]
    alone = [final(first), final(second)]
    assert_close(final(first + second), np.concatenate(alone))


def test_only_rows_that_want_logits_get_them(vulkan_device: Devices, source: ModelSource) -> None:
    program = vulkan_device().compile(build_graph(source.spec, source.tensors, options()), source)
    everywhere = logits(program)
    program.run(Batch.of([Row(token, 0, p, p in (3, 39)) for p, token in enumerate(TOKENS)]))
    assert_close(program.buffer("logits", 2), everywhere[[3, 39]])
    program.run(Batch.of([Row(TOKENS[0], 0, 0)]))  # a step that wants none


def test_candidates_are_those_of_the_logits(vulkan_device: Devices, source: ModelSource) -> None:
    program = vulkan_device().compile(build_graph(source.spec, source.tensors, options()), source)
    program.run(Batch.of([Row(token, 0, p, True, 0.5 + p / 8) for p, token in enumerate(TOKENS[:9])]))
    found = program.buffer("logits", 9).astype(np.float64)
    order = np.argsort(-found, axis=1, kind="stable")[:, :8]
    assert np.array_equal(program.buffer("candidate_ids", 9), order)
    assert np.array_equal(program.buffer("candidate_values", 9), np.take_along_axis(found, order, axis=1))
    tempered = found / (0.5 + np.arange(9) / 8)[:, None]
    assert np.abs(program.buffer("log_sum_exp", 9)[:, 0] - np.log(np.exp(tempered).sum(axis=1))).max() < 1e-4


@pytest.mark.parametrize("on_gpu", [(True, False), (False, True), (True, True, False)])
def test_nodes_on_gpus_and_processors_make_one_model(
    vulkan_device: Devices, source: ModelSource, on_gpu: tuple[bool, ...]
) -> None:
    wanted = logits(CpuDevice(1).compile(build_graph(source.spec, source.tensors, options()), source))
    programs = []
    for shard, gpu in zip(shard_by_ratio(source.spec, [2, 1, 1][: len(on_gpu)]), on_gpu, strict=True):
        graph = build_graph(source.spec, source.tensors, options(), shard)
        device: Device = vulkan_device() if gpu else CpuDevice(1)
        programs.append(device.compile(graph, source))
    cluster = LocalCluster(programs)
    for start, end in ((0, 7), (7, 8), (8, 9)):
        cluster.run(Batch.of([Row(TOKENS[p], 0, p, p == end - 1) for p in range(start, end)]))
        best = np.argsort(-wanted[end - 1], kind="stable")[:8]
        assert np.array_equal(programs[0].buffer("candidate_ids", 1)[0], best)
        assert_close(programs[0].buffer("candidate_values", 1)[0], wanted[end - 1, best])


def test_any_buffer_can_be_read(vulkan_device: Devices, source: ModelSource) -> None:
    graph = build_graph(source.spec, source.tensors, options(BufferType.Q80))
    programs = [device.compile(graph, source) for device in (CpuDevice(1), vulkan_device())]
    for program in programs:
        program.run(Batch.of([Row(token, 0, p, p == 4) for p, token in enumerate(TOKENS[:5])]))
    for buffer in graph.buffers:
        n_rows = 5 if buffer.rows is Rows.ALL else 1
        wanted, found = (program.buffer(buffer.name, n_rows) for program in programs)
        assert found.shape == wanted.shape, buffer.name
        if buffer.name == "qkv":  # rotated keys need not be written back
            wanted, found = (rows[:, : SHAPE["n_heads"] * SHAPE["head_dim"]] for rows in (wanted, found))
        assert np.abs(found - wanted).max() <= 0.05 * np.abs(wanted).max(), buffer.name
    for name, n_rows in (("logits", 41), ("x", -1), ("nothing", 1)):
        with pytest.raises(ValueError, match=name):
            programs[1].buffer(name, n_rows)


def test_a_step_is_one_submit(vulkan_device: Devices, source: ModelSource) -> None:
    program = vulkan_device().compile(build_graph(source.spec, source.tensors, options()), source)
    n_dispatches, n_barriers, n_submits = program.work_of(1, 1)
    assert n_submits == 1
    assert n_barriers <= n_dispatches


def test_a_long_step_is_cut_into_submits_and_joined_where_the_gpu_is_fast(
    vulkan_device: Devices, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dllama_gpu.vulkan import submits

    wanted = logits(vulkan_device().compile(build_graph(source.spec, source.tensors, options()), source))
    program = vulkan_device().compile(build_graph(source.spec, source.tensors, options()), source)
    monkeypatch.setattr(submits, "_FIRST_RATE", 1e3)
    assert program.work_of(40, 40)[2] > 10
    assert_close(logits(program), wanted)
    monkeypatch.setattr(submits, "SECONDS", 1e3)
    assert_close(logits(program), wanted)
    assert program.work_of(40, 40)[2] == 1


def test_rows_outside_the_graph_are_refused(vulkan_device: Devices, source: ModelSource) -> None:
    program = vulkan_device().compile(build_graph(source.spec, source.tensors, options()), source)
    for row, message in ((Row(128, 0, 0), "token 128"), (Row(0, 1, 0), "slot 1"), (Row(0, 0, 48), "position 48")):
        with pytest.raises(DllamaError, match=message):
            program.run(Batch.of([row]))
    with pytest.raises(DllamaError, match="1 to 40 rows"):
        program.run(Batch.of([Row(0, 0, 0)] * 41))


def test_a_share_of_a_model_runs_only_within_a_cluster(vulkan_device: Devices, source: ModelSource) -> None:
    shard = shard_by_ratio(source.spec, [1, 1])[0]
    program = vulkan_device().compile(build_graph(source.spec, source.tensors, options(), shard), source)
    with pytest.raises(DllamaError, match="only within a cluster"):
        program.run(Batch.of([Row(0, 0, 0)]))


def test_progress_ends_at_the_whole(vulkan_device: Devices, source: ModelSource) -> None:
    calls: list[tuple[int, int]] = []
    graph = build_graph(source.spec, source.tensors, options())
    vulkan_device().compile(graph, source, lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] >= graph.weight_bytes()
    assert calls == sorted(calls)


def test_a_lost_gpu_is_a_sentence(vulkan_device: Devices, source: ModelSource) -> None:
    from dllama_gpu.vulkan import _native

    program = vulkan_device().compile(build_graph(source.spec, source.tensors, options()), source)
    _native.fail_submits(1)
    with pytest.raises(DllamaError, match=r"was lost while a step was computed .*start again, with --device cpu"):
        program.run(Batch.of([Row(1, 0, 0)]))


def test_memory_that_the_gpu_refuses_is_a_sentence(vulkan_device: Devices, source: ModelSource) -> None:
    from dllama_gpu.vulkan import _native

    device = vulkan_device()
    graph = build_graph(source.spec, source.tensors, options())
    _native.fail_allocations(1)
    with pytest.raises(DllamaError, match=r"vulkan:\d+ .* has no memory left while memory for the model was taken"):
        device.compile(graph, source)
    assert_close(logits(device.compile(graph, source)), logits(CpuDevice(1).compile(graph, source)))


@pytest.mark.parametrize("cache_type", list(CacheType))
def test_a_copied_beginning_is_as_good_as_a_computed_one(
    vulkan_device: Devices, tmp_path: Path, cache_type: CacheType
) -> None:
    write_random_m(tmp_path / "wide.m", **{**SHAPE, "head_dim": 32}, weight_type=FloatType.Q40, seed=4)
    source = MFile(tmp_path / "wide.m")
    sizes = GraphOptions(max_rows=40, seq_len=48, n_slots=3, n_candidates=8, cache_type=cache_type)
    program = vulkan_device().compile(build_graph(source.spec, source.tensors, sizes), source)
    program.run(Batch.of([Row(token, 2, i) for i, token in enumerate(TOKENS)]))
    program.run(Batch.of([Row(token, 0, i) for i, token in enumerate(reversed(TOKENS))]))  # what is there already
    rest = [Row(token, 2, i, wants_logits=True) for i, token in enumerate(TOKENS)][35:]
    program.run(Batch.of(rest))
    expected = program.buffer("logits", len(rest)).copy()
    program.copy_prefix(2, 0, 35)
    program.run(Batch.of([replace(row, slot=0) for row in rest]))
    np.testing.assert_array_equal(program.buffer("logits", len(rest)), expected)
    for wrong in ((0, 3, 5), (-1, 0, 5), (0, 1, 49)):
        with pytest.raises(ValueError, match="cannot copy"):
            program.copy_prefix(*wrong)
    source.close()
