"""Every op of the CPU device, with every kernel table this processor can run, against the NumPy oracle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.cpu.program import CpuProgram
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import (
    Attention,
    Buffer,
    BufferType,
    Embed,
    GatedMatmul,
    Graph,
    KvCache,
    Matmul,
    Op,
    RmsNorm,
    RopeAngles,
    RopeStore,
    Rows,
    TensorSlice,
    TopCandidates,
    Weight,
)
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import RopeStyle
from tests.oracle.numpy_device import NumpyDevice
from tests.support.arrays import ArraySource
from tests.support.op_bench import OpBench, compare, normal

KERNELS = _native.kernel_names()
ROW_COUNTS = (1, 2, 3, 5, 16, 17, 33)
QUANTIZED = (FloatType.Q40, FloatType.Q41, FloatType.Q80)
FloatArray = npt.NDArray[np.float32]


@pytest.fixture(scope="module", params=KERNELS)
def device(request: pytest.FixtureRequest) -> CpuDevice:
    return CpuDevice(n_threads=1, kernels=request.param)


@pytest.mark.parametrize("n_rows", ROW_COUNTS)
@pytest.mark.parametrize("width", [96, 576])
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_matmul_of_q80_rows(device: CpuDevice, float_type: FloatType, width: int, n_rows: int) -> None:
    bench = OpBench(normal(n_rows, width))
    x = bench.norm(width, BufferType.Q80)
    bench.weight("w", normal(40, width, seed=1), float_type)  # 40 rows: the last group is half empty
    bench.buffer("out", 45)
    bench.ops.append(Matmul(x, "w", "out", 5))
    compare(bench.run(device), "out", n_rows)


@pytest.mark.parametrize("n_rows", [1, 3, 4, 9])
@pytest.mark.parametrize("float_type", list(FloatType))
def test_matmul_of_f32_rows(device: CpuDevice, float_type: FloatType, n_rows: int) -> None:
    width = 96 if float_type.is_quantized else 77
    bench = OpBench(normal(n_rows, width))
    bench.weight("w", normal(40, width, seed=1), float_type)
    bench.buffer("out", 40)
    bench.ops.append(Matmul("x", "w", "out"))
    compare(bench.run(device), "out", n_rows)


@pytest.mark.parametrize("float_type", list(FloatType))
def test_embedding_of_every_format_from_file_rows_and_from_packed_rows(
    device: CpuDevice, float_type: FloatType
) -> None:
    source = ArraySource()
    table = source.add("table", normal(50, 96), float_type)
    for shared in (False, True):
        ops: list[Op] = [Embed("table", "x")]
        if shared:  # a matmul of the same weight makes the device keep it packed
            ops.append(Matmul("x", "table", "out"))
        buffers = (Buffer("x", 96), Buffer("out", 50))
        graph = Graph(buffers, (), (table,), tuple(ops), vocab_size=50, max_rows=4, n_slots=1, seq_len=8)
        programs = device.compile(graph, source), NumpyDevice().compile(graph, source)
        for program in programs:
            program.run(Batch.of([Row(token, 0, i) for i, token in enumerate((0, 17, 49, 3))]))
        compare(programs, "x", 4, tolerance=1e-7)


@pytest.mark.parametrize("type", [BufferType.F32, BufferType.Q80])
@pytest.mark.parametrize("n_rows", [1, 5, 18])
def test_rms_norm_adds_then_scales(device: CpuDevice, n_rows: int, type: BufferType) -> None:
    width = 96 if type is BufferType.Q80 else 75
    bench = OpBench(normal(n_rows, width) * 3)
    bench.weight("w", normal(width, seed=2))
    bench.buffer("first", width)
    bench.buffer("second", width, type)
    bench.ops += [RmsNorm("x", None, "w", "first", 1e-5), RmsNorm("x", "first", "w", "second", 1e-6)]
    programs = bench.run(device)
    compare(programs, "x", n_rows)
    # One quant of a block may fall on the other side of a half.
    compare(programs, "second", n_rows, tolerance=2e-5 if type is BufferType.F32 else 1 / 127)


def test_q80_rows_are_what_the_codec_makes_of_them(device: CpuDevice) -> None:
    width = 128
    inputs = normal(20, width)
    inputs[3] = 0
    inputs[4, :32] = 1e-8  # the scale underflows f16
    inputs[5, 40] = 1e4
    bench = OpBench(inputs)
    bench.weight("w", np.ones(width, np.float32))
    bench.buffer("normed", width)
    bench.buffer("quantized", width, BufferType.Q80)
    bench.ops += [RmsNorm("x", None, "w", "normed", 1e-5), RmsNorm("x", None, "w", "quantized", 1e-5)]
    program, oracle = bench.run(device)
    oracle.write("quantized", program.buffer("normed", 20).astype(np.float64))
    assert np.array_equal(program.buffer("quantized", 20), oracle.buffer("quantized", 20).astype(np.float32))


def test_rms_norm_gathers_the_rows_that_want_logits(device: CpuDevice) -> None:
    bench = OpBench(normal(6, 64))
    bench.weight("w", normal(64, seed=1))
    bench.buffer("last", 64, rows=Rows.LOGITS)
    bench.ops.append(RmsNorm("x", None, "w", "last", 1e-5))
    rows = [Row(r, 0, r, wants_logits=r in (1, 4)) for r in range(6)]
    compare(bench.run(device, rows), "last", 2)


@pytest.mark.parametrize("type", [BufferType.F32, BufferType.Q80])
@pytest.mark.parametrize("n_rows", [1, 4, 19])
@pytest.mark.parametrize("float_type", [FloatType.F32, FloatType.Q40, FloatType.Q80])
def test_gated_matmul(device: CpuDevice, float_type: FloatType, n_rows: int, type: BufferType) -> None:
    hidden = 96 if type is BufferType.Q80 else 72
    bench = OpBench(normal(n_rows, 64))
    bench.weight("gate", normal(hidden, 64, seed=1), float_type)
    bench.weight("up", normal(hidden, 64, seed=2), float_type)
    bench.buffer("out", hidden, type)
    bench.ops.append(GatedMatmul("x", "gate", "up", "out"))
    compare(bench.run(device), "out", n_rows, tolerance=2e-5 if type is BufferType.F32 else 1 / 127)


def test_gated_matmul_of_two_number_formats(device: CpuDevice) -> None:
    bench = OpBench(normal(3, 64))
    bench.weight("gate", normal(64, 64, seed=1), FloatType.Q40)
    bench.weight("up", normal(64, 64, seed=2), FloatType.F16)
    bench.buffer("out", 64)
    bench.ops.append(GatedMatmul("x", "gate", "up", "out"))
    compare(bench.run(device), "out", 3)


def test_gated_matmuls_that_share_matrices(device: CpuDevice) -> None:
    """Groups of two matrices can lie in turns only once; 72 rows are an odd number of groups."""
    bench = OpBench(normal(3, 64))
    for seed, (name, float_type) in enumerate((("a", FloatType.Q40), ("b", FloatType.F16), ("c", FloatType.Q80))):
        bench.weight(name, normal(72, 64, seed=seed + 1), float_type)
    pairs = [("a", "a"), ("b", "c"), ("a", "c"), ("c", "b"), ("b", "a")]
    for gate, up in pairs:
        bench.buffer(gate + up, 72)
        bench.ops.append(GatedMatmul("x", gate, up, gate + up))
    bench.buffer("product", 72)
    bench.ops.append(Matmul("x", "c", "product"))
    programs = bench.run(device)
    for gate, up in pairs:
        compare(programs, gate + up, 3)
    compare(programs, "product", 3)


def attention_bench(
    n_rows: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    style: RopeStyle,
    group: int | None = None,
    first_head: int = 0,
    window: int = 0,
    out: BufferType = BufferType.F32,
) -> OpBench:
    width = (n_heads + 2 * n_kv_heads) * head_dim
    bench = OpBench(normal(n_rows, width))
    bench.caches.append(KvCache("kv", n_kv_heads, head_dim))
    bench.buffer("angles", head_dim)
    bench.buffer("out", n_heads * head_dim, out)
    frequencies = tuple(10000.0 ** (-2.0 * i / head_dim) for i in range(head_dim // 2))
    bench.ops += [
        RopeAngles(frequencies, "angles"),
        RopeStore("x", "angles", "kv", n_heads, style),
        Attention("x", "kv", "out", n_heads, group or n_heads // n_kv_heads, head_dim**-0.5, first_head, window),
    ]
    return bench


@pytest.mark.parametrize("style", list(RopeStyle))
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim"), [(4, 4, 16), (9, 3, 64), (8, 1, 20), (6, 2, 100), (34, 2, 16), (5, 1, 128)]
)
def test_attention_of_one_prompt(
    device: CpuDevice, n_heads: int, n_kv_heads: int, head_dim: int, style: RopeStyle
) -> None:
    bench = attention_bench(37, n_heads, n_kv_heads, head_dim, style)
    programs = bench.run(device, seq_len=40)
    compare(programs, "angles", 37)
    compare(programs, "x", 37)
    # A key or value that lies between two f16 numbers may be rounded either way.
    compare(programs, "out", 37, tolerance=5e-4)


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "group", "first_head"),
    [(2, 1, 3, 1), (3, 2, 3, 2), (5, 3, 3, 2), (1, 1, 4, 3), (4, 2, 3, 0)],
)
def test_attention_of_heads_that_begin_or_end_inside_a_group(
    device: CpuDevice, n_heads: int, n_kv_heads: int, group: int, first_head: int
) -> None:
    for n_rows in (1, 20):
        bench = attention_bench(n_rows, n_heads, n_kv_heads, 32, RopeStyle.INTERLEAVED, group, first_head)
        compare(bench.run(device), "out", n_rows, tolerance=5e-4)


def test_attention_over_many_chunks_by_prefill_and_by_decode(device: CpuDevice) -> None:
    n_positions = 600  # three chunks of 256
    bench = attention_bench(n_positions, 6, 2, 24, RopeStyle.INTERLEAVED)
    graph = bench.graph(seq_len=n_positions, max_rows=n_positions)
    program, oracle = device.compile(graph, bench.source), NumpyDevice().compile(graph, bench.source)
    rows = [Row(p, 0, p) for p in range(n_positions)]
    oracle.run(Batch.of(rows))
    program.run(Batch.of(rows))
    compare((program, oracle), "out", n_positions, tolerance=5e-4)
    at_once = program.buffer("out", n_positions).copy()
    for p in range(590, n_positions):
        program.run(Batch.of(rows[p : p + 1]))
        assert np.array_equal(program.buffer("out", 1)[0], at_once[p]), "a row alone differs from the row in a batch"


@pytest.mark.parametrize("out", [BufferType.F32, BufferType.Q80])
@pytest.mark.parametrize("window", [0, 16, 300])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "group", "first_head", "head_dim"), [(3, 2, 2, 1, 64), (4, 2, 2, 0, 40)]
)
def test_a_few_rows_get_what_each_got_in_a_prompt(
    device: CpuDevice,
    n_heads: int,
    n_kv_heads: int,
    group: int,
    first_head: int,
    head_dim: int,
    window: int,
    out: BufferType,
) -> None:
    """Whether their chunks of 256 positions are one or many, the same or others; whether a head fills Q80 blocks."""
    n = 530
    bench = attention_bench(n, n_heads, n_kv_heads, head_dim, RopeStyle.HALF_SPLIT, group, first_head, window, out)
    program = device.compile(bench.graph(seq_len=n, n_slots=2, max_rows=n), bench.source)
    for slot in range(2):
        program.run(Batch.of([Row(p, slot, p) for p in range(n)]))
    in_prompt = program.buffer("out", n).copy()
    steps = (
        [(0, 0)],
        [(0, 255)],
        [(0, 256)],
        [(0, 529)],
        [(0, p) for p in range(252, 260)],
        [(0, p) for p in (3, 250, 275, 300, 529)],  # with a window of 16, each in one chunk, but not in the same
        [(1, 100), (0, 280)],
        [(1, 10), (1, 11), (0, 270), (0, 529)],
        [(0, 500), (0, 529), (1, 255), (1, 271)],
    )
    for step in steps:
        program.run(Batch.of([Row(p, slot, p) for slot, p in step]))
        assert np.array_equal(program.buffer("out", len(step)), in_prompt[[p for _, p in step]]), step


def test_rows_of_several_slots_do_not_see_each_other(device: CpuDevice) -> None:
    bench = attention_bench(30, 4, 2, 32, RopeStyle.HALF_SPLIT)
    graph = bench.graph(seq_len=16, n_slots=3, max_rows=30)
    program, oracle = device.compile(graph, bench.source), NumpyDevice().compile(graph, bench.source)
    prompts = [Row(10 * slot + p, slot, p) for slot in range(3) for p in range(5 + slot)]
    steps = [Row(10 * slot + 9, slot, 5 + slot) for slot in (2, 0, 1)]
    for rows in (prompts, steps):
        program.run(Batch.of(rows))
        oracle.run(Batch.of(rows))
        compare((program, oracle), "out", len(rows), tolerance=5e-4)


def test_a_slot_used_again_forgets_what_it_held(device: CpuDevice) -> None:
    bench = attention_bench(20, 4, 2, 32, RopeStyle.INTERLEAVED)
    graph = bench.graph(seq_len=20, max_rows=20)
    used, fresh = device.compile(graph, bench.source), device.compile(graph, bench.source)
    used.run(Batch.of([Row(r, 0, r) for r in range(20)]))
    again = Batch.of([Row(19 - r, 0, r) for r in range(7)])
    for program in (used, fresh):
        program.run(again)
    assert np.array_equal(used.buffer("out", 7), fresh.buffer("out", 7))


@pytest.mark.parametrize("vocab", [40, 5000, 9000, 17000])
def test_top_candidates(device: CpuDevice, vocab: int) -> None:
    bench = OpBench(normal(3, 32))
    bench.weight("ones", np.ones(32, np.float32))
    bench.buffer("last", 32, rows=Rows.LOGITS)
    bench.weight("head", normal(vocab, 32, seed=3))
    bench.buffer("logits", vocab, rows=Rows.LOGITS)
    bench.buffer("values", 33, rows=Rows.LOGITS)
    bench.buffer("ids", 33, BufferType.I32, Rows.LOGITS)
    bench.buffer("lse", 1, rows=Rows.LOGITS)
    bench.ops += [
        RmsNorm("x", None, "ones", "last", 1e-5),
        Matmul("last", "head", "logits"),
        TopCandidates("logits", "values", "ids", "lse", first_id=100),
    ]
    rows = [Row(0, 0, 0, True, 0.5), Row(1, 0, 1), Row(2, 0, 2, True, 2.0)]
    programs = bench.run(device, rows)
    compare(programs, "values", 2)
    compare(programs, "lse", 2)
    program = programs[0]
    logits = program.buffer("logits", 2)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :33]
    assert np.array_equal(program.buffer("ids", 2), order + 100)


def test_top_candidates_among_equals_are_those_of_the_lowest_ids(device: CpuDevice) -> None:
    head = np.zeros((6000, 32), np.float32)
    head[[7, 4999, 5000], 0] = 1
    assert best_six(device, head) == [7, 4999, 5000, 0, 1, 2]


def test_logits_that_are_no_number_hide_no_candidate(device: CpuDevice) -> None:
    """They come from damaged weights: infinity minus infinity."""
    head = np.zeros((6000, 32), np.float32)
    best = [777, 778, 2048, 2049, 4444, 5999]
    head[best, 0] = [6, 5, 4, 3, 2, 1]
    beside = [761, 776, 779, 793, 2047, 2064, 4428, 4460, 5983]
    head[beside, :4] = [3e38, -3e38, 3e38, -3e38]
    assert best_six(device, head) == best


# Columns whose products with a row of ones are no number, infinite, or a number.
NAN, PLUS, MINUS = (3e38, -3e38, 3e38, -3e38), (3e38, 0, 3e38, 0), (-3e38, 0, -3e38, 0)


@pytest.mark.parametrize("k", [1, 64, 129])
@pytest.mark.parametrize("vocab", [130, 511, 512, 2000, 17000])
def test_the_best_of_any_logits(device: CpuDevice, vocab: int, k: int) -> None:
    """Numbers, most of them many times, and in some rows of the vocabulary what damaged weights make of them."""
    rng = np.random.default_rng(vocab + k)
    few = rng.integers(-3, 4, vocab).astype(np.float32)
    specials = rng.choice(4, vocab, p=(0.7, 0.1, 0.1, 0.1))
    for scale, kinds in ((few, specials * 0), (few, specials), (few, np.full(vocab, 1)), (few, np.full(vocab, 3))):
        head = np.zeros((vocab, 32), np.float32)
        head[:, 0] = scale
        for kind, columns in ((1, NAN), (2, PLUS), (3, MINUS)):
            head[kinds == kind, :4] = columns
        program = best(device, head, k)
        logits = program.buffer("logits", 1)[0]
        numbers = np.flatnonzero(~np.isnan(logits))
        wanted = numbers[np.argsort(-logits[numbers], kind="stable")][:k]
        missing = k - len(wanted)
        assert program.buffer("ids", 1)[0].tolist() == wanted.tolist() + [-1] * missing
        assert program.buffer("values", 1)[0].tolist() == logits[wanted].tolist() + [-np.inf] * missing


def best_six(device: CpuDevice, head: npt.NDArray[np.float32]) -> list[int]:
    """The ids of the six largest of the products of `head` (vocab, 32) with a row of ones."""
    ids: list[int] = best(device, head, 6).buffer("ids", 1)[0].tolist()
    return ids


def best(device: CpuDevice, head: npt.NDArray[np.float32], k: int) -> CpuProgram:
    """A program that has looked for the k largest of those products."""
    bench = OpBench(np.ones((1, 32), np.float32))
    bench.weight("ones", np.ones(32, np.float32))
    bench.buffer("last", 32, rows=Rows.LOGITS)
    bench.weight("head", head)
    for name, width, type in (
        ("logits", len(head), BufferType.F32),
        ("values", k, BufferType.F32),
        ("ids", k, BufferType.I32),
        ("lse", 1, BufferType.F32),
    ):
        bench.buffer(name, width, type, Rows.LOGITS)
    bench.ops += [
        RmsNorm("x", None, "ones", "last", 1e-5),
        Matmul("last", "head", "logits"),
        TopCandidates("logits", "values", "ids", "lse"),
    ]
    program = device.compile(bench.graph(), bench.source)
    program.run(Batch.of([Row(0, 0, 0, True)]))
    return program


def test_weights_stacked_from_slices_of_tensors(device: CpuDevice) -> None:
    bench = OpBench(normal(4, 64))
    bench.source.add("a", normal(50, 128, seed=1), FloatType.Q40)
    bench.source.add("b", normal(30, 64, seed=2), FloatType.Q40)
    parts = (TensorSlice("a", 10, 31, 32, 96), TensorSlice("b", 0, 30, 0, 64))
    bench.weights.append(Weight("stack", FloatType.Q40, 51, 64, parts))
    bench.buffer("out", 51)
    bench.ops.append(Matmul("x", "stack", "out"))
    compare(bench.run(device), "out", 4)
