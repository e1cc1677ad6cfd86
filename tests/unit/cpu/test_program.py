"""Whole models on the CPU device: against the oracle, and the same bits however the work is divided."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.cpu.processors import available_threads
from dllama_gpu.cpu.program import CpuProgram
from dllama_gpu.cpu.weights import load_weights
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Program, Row
from dllama_gpu.graph.graph import BufferType, CacheType, Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.source import ModelSource
from dllama_gpu.model.spec import RopeScaling
from tests.oracle.numpy_device import NumpyDevice
from tests.support.models import write_random_m

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


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    path = tmp_path_factory.mktemp("model") / "small.m"
    write_random_m(path, **SHAPE, weight_type=FloatType.Q40, seed=3)
    file = MFile(path)
    yield file
    file.close()


def options(buffer_type: BufferType = BufferType.Q80, max_rows: int = 40) -> GraphOptions:
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


@pytest.mark.parametrize("float_type", [FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80])
@pytest.mark.parametrize("buffer_type", [BufferType.F32, BufferType.Q80])
@pytest.mark.parametrize("kernels", _native.kernel_names())
def test_logits_agree_with_the_oracle(
    tmp_path: Path, kernels: str, buffer_type: BufferType, float_type: FloatType
) -> None:
    path = tmp_path / "model.m"
    scaling = RopeScaling(8.0, 1.0, 4.0, 16)
    write_random_m(path, **SHAPE, weight_type=float_type, rope_scaling=scaling, seed=1)
    source = MFile(path)
    graph = build_graph(source.spec, source.tensors, options(buffer_type))
    found = logits(CpuDevice(1, kernels).compile(graph, source))
    wanted = logits(NumpyDevice().compile(graph, source))
    source.close()
    quantized_rows = buffer_type is BufferType.Q80 and float_type.is_quantized
    # Where rows are quantized, a value near a half moves a whole quant, and later layers see it.
    tolerance = 0.05 if quantized_rows else 2e-3
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
    assert np.sqrt(np.mean((found - wanted) ** 2)) <= tolerance / 5 * np.sqrt(np.mean(wanted**2))


@pytest.mark.parametrize("buffer_type", [BufferType.F32, BufferType.Q80])
def test_every_division_of_a_prompt_into_chunks_gives_the_same_bits(
    source: ModelSource, buffer_type: BufferType
) -> None:
    program = CpuDevice(1).compile(build_graph(source.spec, source.tensors, options(buffer_type)), source)
    at_once = logits(program)
    for chunk in (1, 3, 16, 17):
        assert np.array_equal(logits(program, chunk), at_once), f"chunks of {chunk}"


def test_every_thread_count_gives_the_same_bits(source: ModelSource) -> None:
    graph = build_graph(source.spec, source.tensors, options())
    results = [logits(CpuDevice(n).compile(graph, source)) for n in range(1, min(available_threads(), 8) + 1)]
    assert all(np.array_equal(results[0], other) for other in results)


def test_more_threads_than_processors_and_many_short_lives_give_the_same_bits(source: ModelSource) -> None:
    graph = build_graph(source.spec, source.tensors, options())
    expected = logits(CpuDevice(1).compile(graph, source), chunk=7)
    pool = _native.ThreadPool(7, False)
    kernels = CpuDevice(1).kernels
    for _ in range(20):  # threads of one program's last step meet the next program's first
        program = CpuProgram(graph, load_weights(graph, source, pool), pool, kernels)
        assert np.array_equal(logits(program, chunk=7), expected)


def test_late_threads_never_mix_two_steps(source: ModelSource) -> None:
    """Units grow and shrink from step to step, with more threads than processors, so that some are always late."""
    graph = build_graph(source.spec, source.tensors, options())
    alone = CpuDevice(1).compile(graph, source)
    pool = _native.ThreadPool(6, False)
    crowded = CpuProgram(graph, load_weights(graph, source, pool), pool, CpuDevice(1).kernels)
    many = Batch.of([Row(token, 0, p, True) for p, token in enumerate(TOKENS)])
    few = Batch.of([Row(TOKENS[-1], 0, len(TOKENS), True)])
    expected = []
    for batch, n_rows in ((many, len(TOKENS)), (few, 1)):
        alone.run(batch)
        expected.append(alone.buffer("logits", n_rows).copy())
    for _ in range(60):
        for batch, wanted in zip((many, few), expected, strict=True):
            crowded.run(batch)
            assert np.array_equal(crowded.buffer("logits", len(wanted)), wanted)


def test_programs_that_share_threads_take_turns(source: ModelSource) -> None:
    graph = build_graph(source.spec, source.tensors, options())
    pool = _native.ThreadPool(3, False)
    kernels = CpuDevice(1).kernels
    programs = [CpuProgram(graph, load_weights(graph, source, pool), pool, kernels) for _ in range(4)]
    expected = logits(programs[0], chunk=5)

    def use(program: CpuProgram) -> bool:
        return all(np.array_equal(logits(program, chunk=5), expected) for _ in range(5))

    with ThreadPoolExecutor(4) as users:
        assert all(users.map(use, programs))


def test_instruction_sets_with_fused_multiply_add_give_the_same_bits(source: ModelSource) -> None:
    fused = [name for name in _native.kernel_names() if name != "plain"]
    if len(fused) < 2:
        pytest.skip(f"this processor runs only {', '.join(_native.kernel_names())}")
    graph = build_graph(source.spec, source.tensors, options())
    results = [logits(CpuDevice(1, name).compile(graph, source)) for name in fused]
    assert all(np.array_equal(results[0], other) for other in results)


def test_two_users_in_one_step_get_what_each_gets_alone(source: ModelSource) -> None:
    graph = build_graph(source.spec, source.tensors, replace(options(), n_slots=2))
    program = CpuDevice(1).compile(graph, source)

    def final(rows: list[Row]) -> npt.NDArray[np.float32]:
        program.run(Batch.of(rows))
        return program.buffer("logits", sum(row.wants_logits for row in rows)).copy()

    first = [Row(token, 0, p, p == 11) for p, token in enumerate(TOKENS[:12])]
    second = [Row(token, 1, p, p == 6) for p, token in enumerate(TOKENS[20:27])]
    alone = [final(first), final(second)]
    assert np.array_equal(final(first + second), np.concatenate(alone))


def test_only_rows_that_want_logits_get_them(source: ModelSource) -> None:
    program = CpuDevice(1).compile(build_graph(source.spec, source.tensors, options()), source)
    everywhere = logits(program)
    program.run(Batch.of([Row(token, 0, p, p in (3, 39)) for p, token in enumerate(TOKENS)]))
    assert np.array_equal(program.buffer("logits", 2), everywhere[[3, 39]])
    program.run(Batch.of([Row(TOKENS[0], 0, 0)]))  # a step that wants none


def test_what_a_step_takes_beside_its_weights_is_measured_without_the_matrices(source: ModelSource) -> None:
    program = CpuDevice(n_threads=2).compile(build_graph(source.spec, source.tensors, options()), source)
    native = program._program
    streaming = [name for op, name in enumerate(program.op_names) if native.streams_weights(op)]
    # The head's matmul is part of the search for candidates.
    assert streaming == ["Matmul", "Matmul", "GatedMatmul", "Matmul"] * 3 + ["TopCandidates"]
    batch = Batch.of([Row(1, 0, 3, True)])
    assert 0 < program.seconds_beside_weights(batch, n_times=3) < 1
    assert program.weight_read_rate() > 0
    with pytest.raises(IndexError):
        native.streams_weights(native.n_ops)


def batch_of(rows: list[tuple[int, int]], logit_rows: list[int], temperatures: list[float]) -> Batch:
    """A batch of (slot, position) rows whose columns need not belong together."""
    slots, positions = (np.array([row[i] for row in rows], np.int32) for i in range(2))
    return Batch(
        np.zeros(len(rows), np.int32),
        slots,
        positions,
        np.array(logit_rows, np.int32),
        np.array(temperatures, np.float32),
    )


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (batch_of([(0, 0)], [0] * 3000, [1.0] * 3000), "3000 rows of a batch want logits"),
        (batch_of([(0, 0), (0, 1)], [1, 1], [1.0, 1.0]), "ascending order, each once"),
        (batch_of([(0, 0), (0, 1)], [1, 0], [1.0, 1.0]), "ascending order, each once"),
        (batch_of([(0, 0), (0, 1)], [0], []), "differ in length"),
        (batch_of([(0, 1), (0, 0)], [], []), "ascending position"),
        (batch_of([(0, 1), (0, 1)], [], []), "ascending position"),
        (batch_of([(0, 0), (1, 0), (0, 1)], [], []), "stand together"),
        (batch_of([(0, 0)], [0], [float("nan")]), "temperature"),
        (batch_of([(0, 0)], [0], [float("inf")]), "temperature"),
    ],
)
def test_batches_that_break_their_promises_are_refused(source: ModelSource, batch: Batch, message: str) -> None:
    graph = build_graph(source.spec, source.tensors, replace(options(), n_slots=2))
    program = CpuDevice(1).compile(graph, source)
    with pytest.raises(DllamaError, match=message):
        program.run(batch)


def test_native_code_takes_the_batches_that_keep_their_promises_and_no_others() -> None:
    """It indexes memory with them: Batch.check, which the CPU asks only for the sentence, must not know better."""
    graph = Graph((), (), (), (), vocab_size=3, max_rows=4, n_slots=3, seq_len=4, max_logit_rows=2)
    program = _native.Program(_native.ThreadPool(1, False), "plain", 4, 2, 3, 3, 4)
    rng = np.random.default_rng(11)
    verdicts = {True: 0, False: 0}
    for _ in range(6000):
        n, n_logits = int(rng.integers(0, 6)), int(rng.integers(0, 4))
        columns = [rng.integers(0, limit, n) for limit in (3, 3, 4)]
        logit_rows, temperatures = rng.integers(0, max(n, 1), n_logits), rng.choice([0.5, 1.0, 2.0], n_logits)
        if rng.random() < 0.7:
            order = np.lexsort((columns[2], columns[1]))
            columns = [column[order] for column in columns]
            logit_rows = np.sort(logit_rows)
        if rng.random() < 0.3:
            column = [*columns, logit_rows][rng.integers(4)]
            column[: 1 if rng.random() < 0.5 else None] = rng.choice([-1, 3, 4, 2**31 - 1, -(2**31)])
        if rng.random() < 0.1:
            temperatures[:1] = rng.choice([0.0, -1.0, np.nan, np.inf])
        if rng.random() < 0.05:
            columns[rng.integers(3)] = np.zeros(n + 1, np.int64)
        batch = Batch(*(a.astype(np.int32) for a in (*columns, logit_rows)), temperatures.astype(np.float32))
        arrays = (batch.tokens, batch.slots, batch.positions, batch.logit_rows, batch.temperatures)
        try:
            batch.check(graph)
        except DllamaError:
            verdicts[False] += 1
            with pytest.raises(ValueError, match="do not fit"):
                program.step(*arrays)
        else:
            verdicts[True] += 1
            program.step(*arrays)
    assert min(verdicts.values()) > 500


def test_room_for_few_logit_rows_is_room_for_no_more(source: ModelSource) -> None:
    graph = build_graph(source.spec, source.tensors, replace(options(), max_logit_rows=2))
    program = CpuDevice(1).compile(graph, source)
    whole = CpuDevice(1).compile(build_graph(source.spec, source.tensors, options()), source)
    rows = [Row(token, 0, p, p in (5, 7)) for p, token in enumerate(TOKENS[:8])]
    for each in (program, whole):
        each.run(Batch.of(rows))
    assert np.array_equal(program.buffer("logits", 2), whole.buffer("logits", 2))
    with pytest.raises(DllamaError, match="3 rows of a batch want logits, but at most 2"):
        program.run(Batch.of([Row(token, 0, p, p > 4) for p, token in enumerate(TOKENS[:8])]))
    for name, n_rows in (("logits", 3), ("x", 41), ("x", -1), ("nothing", 1)):
        with pytest.raises(ValueError, match=name):
            program.buffer(name, n_rows)


@pytest.mark.parametrize("float_type", [FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80])
def test_damaged_weights_are_refused_with_the_place(tmp_path: Path, float_type: FloatType) -> None:
    path = tmp_path / "damaged.m"
    write_random_m(path, **SHAPE, weight_type=float_type, seed=1)
    source = MFile(path)
    raw = source.read("layers.1.down")
    start = path.read_bytes().index(raw[7].tobytes())
    source.close()
    data = bytearray(path.read_bytes())
    data[start : start + 4] = b"\x00\x00\xc0\x7f" if float_type is FloatType.F32 else b"\x00\x7e\x00\x7e"
    path.write_bytes(data)
    damaged = MFile(path)
    with pytest.raises(DllamaError, match=r"row 7 of tensor layers\.1\.down holds NaN or infinity"):
        CpuDevice(1).compile(build_graph(damaged.spec, damaged.tensors, options()), damaged)
    damaged.close()


def test_nan_in_an_embedding_reaches_the_logits(tmp_path: Path) -> None:
    path = tmp_path / "damaged.m"
    write_random_m(path, **SHAPE, weight_type=FloatType.Q40, seed=1)
    source = MFile(path)
    raw = source.read("embedding")
    start = path.read_bytes().index(raw[9].tobytes())
    source.close()
    data = bytearray(path.read_bytes())
    data[start : start + 4] = b"\x00\x00\xc0\x7f"
    path.write_bytes(data)
    damaged = MFile(path)
    for kernels in _native.kernel_names():
        program = CpuDevice(1, kernels).compile(build_graph(damaged.spec, damaged.tensors, options()), damaged)
        program.run(Batch.of([Row(9, 0, 0, True)]))
        assert np.isnan(program.buffer("logits", 1)).all()
        assert not np.isfinite(program.buffer("log_sum_exp", 1)).any()
    damaged.close()


@pytest.mark.parametrize("array", [np.zeros((2, 32), np.int16), np.zeros((2, 64), np.float32)[:, ::2]])
def test_native_buffers_take_no_array_that_they_would_have_to_copy(array: npt.NDArray[np.generic]) -> None:
    with pytest.raises(TypeError):
        _native.f32_buffer(array, False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(128, 0, 0), "token 128"),
        (Row(-1, 0, 0), "token -1"),
        (Row(0, 1, 0), "slot 1"),
        (Row(0, 0, 48), "position 48"),
        (Row(0, 0, 0, True, 0.0), "temperature"),
    ],
)
def test_rows_outside_the_graph_are_refused(source: ModelSource, row: Row, message: str) -> None:
    program = CpuDevice(1).compile(build_graph(source.spec, source.tensors, options()), source)
    with pytest.raises(DllamaError, match=message):
        program.run(Batch.of([row]))
    with pytest.raises(DllamaError, match="1 to 40 rows"):
        program.run(Batch.of([Row(0, 0, 0)] * 41))
    with pytest.raises(DllamaError, match="1 to 40 rows"):
        program.run(Batch.of([]))


def test_device_names_its_kernels_and_refuses_what_it_lacks() -> None:
    assert "plain" in CpuDevice(1, "plain").name
    with pytest.raises(DllamaError, match="no 'mmx' kernels"):
        CpuDevice(1, "mmx")
    for n_threads in (0, -3, available_threads() + 1):
        with pytest.raises(DllamaError, match="--nthreads"):
            CpuDevice(n_threads)


def test_a_missing_or_different_tensor_is_a_sentence(source: ModelSource, tmp_path: Path) -> None:
    graph = build_graph(source.spec, source.tensors, options())
    path = tmp_path / "other.m"
    write_random_m(path, **{**SHAPE, "dim": 64}, weight_type=FloatType.Q40, seed=3)
    other = MFile(path)
    with pytest.raises(DllamaError, match=r"other\.m"):
        CpuDevice(1).compile(graph, other)
    other.close()


def test_progress_ends_at_the_whole(source: ModelSource) -> None:
    calls: list[tuple[int, int]] = []
    graph = build_graph(source.spec, source.tensors, options())
    CpuDevice(1).compile(graph, source, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (graph.weight_bytes(), graph.weight_bytes())
    assert calls == sorted(calls)


@pytest.mark.parametrize("cache_type", list(CacheType))
def test_a_copied_beginning_is_as_good_as_a_computed_one(tmp_path: Path, cache_type: CacheType) -> None:
    write_random_m(tmp_path / "wide.m", **{**SHAPE, "head_dim": 32}, weight_type=FloatType.Q40, seed=4)
    source = MFile(tmp_path / "wide.m")
    sizes = GraphOptions(max_rows=40, seq_len=48, n_slots=3, n_candidates=8, cache_type=cache_type)
    program = CpuDevice(1).compile(build_graph(source.spec, source.tensors, sizes), source)
    program.run(Batch.of([Row(token, 2, i) for i, token in enumerate(TOKENS)]))
    program.run(Batch.of([Row(token, 0, i) for i, token in enumerate(reversed(TOKENS))]))  # what is there already
    rest = [Row(token, 2, i, wants_logits=True) for i, token in enumerate(TOKENS)][21:30]
    program.run(Batch.of(rest))
    expected = program.buffer("logits", len(rest)).copy()
    program.copy_prefix(2, 0, 21)
    program.run(Batch.of([replace(row, slot=0) for row in rest]))
    np.testing.assert_array_equal(program.buffer("logits", len(rest)), expected)
    source.close()


def test_only_slots_and_positions_that_there_are_can_be_copied(source: ModelSource) -> None:
    program = CpuDevice(1).compile(build_graph(source.spec, source.tensors, options()), source)
    for wrong in ((0, 1, 5), (-1, 0, 5), (0, 0, 49)):
        with pytest.raises(ValueError, match="cannot copy"):
            program.copy_prefix(*wrong)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_slot_takes_the_memory_of_its_tokens_and_not_of_its_context(tmp_path: Path) -> None:
    write_random_m(tmp_path / "long.m", **{**SHAPE, "max_seq_len": 1 << 18}, weight_type=FloatType.Q40, seed=4)
    source = MFile(tmp_path / "long.m")
    sizes = GraphOptions(max_rows=8, seq_len=1 << 18, n_slots=4)
    graph = build_graph(source.spec, source.tensors, sizes)
    program = CpuDevice(1).compile(graph, source)
    program.run(Batch.of([Row(1, 0, 0)]))
    before = resident_bytes()
    program.run(Batch.of([Row(1, slot, 0) for slot in range(1, 4)]))
    assert graph.kv_cache_bytes() > 128 << 20
    assert resident_bytes() - before < 8 << 20
    source.close()


def resident_bytes() -> int:
    """What of this process is in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
