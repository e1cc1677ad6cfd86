"""Every op by the shaders of every tier that the device offers, against the NumPy oracle, on odd shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import Activation as GateActivation
from dllama_gpu.graph.graph import (
    Attention,
    Buffer,
    BufferType,
    CacheType,
    Embed,
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    Graph,
    KvCache,
    Matmul,
    Op,
    RmsNorm,
    RopeAngles,
    RopeStore,
    Rows,
    TopCandidates,
    TopExperts,
    Weight,
)
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import RopeStyle
from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.limits import DeviceLimits, Tier
from dllama_gpu.vulkan.tiers import limits_of, missing_for
from dllama_gpu.vulkan.tuning import Tuning, for_device
from tests.oracle.numpy_device import NumpyDevice, NumpyProgram
from tests.support.arrays import ArraySource
from tests.support.plan_runner import PlannedProgram, PlanRunner

FloatArray = npt.NDArray[np.float32]
QUANTIZED = (FloatType.Q40, FloatType.Q41, FloatType.Q80)
ROW_COUNTS = (1, 2, 7, 32, 128)

SMALL = DeviceLimits(subgroup_size=8, max_invocations=256, shared_bytes=16 << 10)  # the least that any device has
WIDE = replace(SMALL, subgroup_size=32)  # teams of several of this driver's subgroups


def on_processor(tier: Tier) -> Tuning:
    return for_device(replace(SMALL, is_cpu=True), tier)


class Setting:
    """A tier with a device's usual choices."""

    def __init__(self, name: str, tier: Tier, tuning: Tuning) -> None:
        self.name, self.tier, self.tuning = name, tier, tuning


SETTINGS = [
    Setting("base", Tier.BASE, for_device(WIDE, Tier.BASE)),
    # A device that is busy with little: short teams, large tiles; in between, tiles of both sizes.
    Setting("subgroup", Tier.SUBGROUP, replace(for_device(WIDE, Tier.SUBGROUP), busy_lanes=0)),
    Setting("dot", Tier.DOT, replace(for_device(SMALL, Tier.DOT), busy_lanes=300)),
    Setting("dot-processor", Tier.DOT, on_processor(Tier.DOT)),
    Setting("matrix", Tier.MATRIX, on_processor(Tier.MATRIX)),
]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda setting: setting.name)
def setting_runner(request: pytest.FixtureRequest, validated_device: _native.Device) -> PlanRunner:
    setting: Setting = request.param
    info, tuning = validated_device.info, setting.tuning
    for tier in Tier:
        if tier <= setting.tier and (lack := missing_for(tier, info)) is not None:
            pytest.skip(f"{info.name} has no {lack}")
    if setting.tier is Tier.MATRIX:
        own = limits_of(info)
        tuning = replace(tuning, limits=replace(tuning.limits, subgroup_size=own.subgroup_size, matrix=own.matrix))
    return PlanRunner(validated_device, tuning.limits, setting.tier, tuning)


@pytest.fixture
def runner(setting_runner: PlanRunner, native_device: _native.Device) -> PlanRunner:
    """One for each setting, and no message of the validation layers during a test."""
    return setting_runner


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


Programs = tuple[PlannedProgram, NumpyProgram]


def compare(programs: Programs, name: str, n_rows: int, tolerance: float = 2e-5) -> None:
    """Largest difference in units of the largest value."""
    found, wanted = (np.asarray(program.buffer(name, n_rows), np.float64) for program in programs)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def rounding(runner: PlanRunner, float_type: FloatType) -> float:
    """Tolerance of a matmul: on matrix units its factors are rounded to f16, but for F32 weights."""
    return 5e-4 if runner.tier is Tier.MATRIX and float_type is not FloatType.F32 else 2e-5


def normal(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n_rows", ROW_COUNTS)
@pytest.mark.parametrize("float_type", QUANTIZED)
def test_matmul_of_q80_rows(runner: PlanRunner, float_type: FloatType, n_rows: int) -> None:
    bench = OpBench(normal(n_rows, 576))
    x = bench.norm(576, BufferType.Q80)
    bench.weight("w", normal(75, 576, seed=1), float_type)
    bench.buffer("out", 83)
    bench.ops.append(Matmul(x, "w", "out", 5))
    compare(bench.run(runner), "out", n_rows, rounding(runner, float_type))


@pytest.mark.parametrize("n_rows", [1, 5, 33])
@pytest.mark.parametrize("float_type", list(FloatType))
def test_matmul_of_f32_rows(runner: PlanRunner, float_type: FloatType, n_rows: int) -> None:
    width = 96 if float_type.is_quantized else 77
    bench = OpBench(normal(n_rows, width))
    bench.weight("w", normal(40, width, seed=1), float_type)
    bench.buffer("out", 40)
    bench.ops.append(Matmul("x", "w", "out"))
    compare(bench.run(runner), "out", n_rows, rounding(runner, float_type))


@pytest.mark.parametrize("float_type", list(FloatType))
def test_embedding(runner: PlanRunner, float_type: FloatType) -> None:
    source = ArraySource()
    width = 96 if float_type.is_quantized else 75
    table = source.add("table", normal(50, width), float_type)
    graph = Graph((Buffer("x", width),), (), (table,), (Embed("table", "x"),), 50, 4, 1, 8)
    programs = runner.compile(graph, source), NumpyDevice().compile(graph, source)
    for program in programs:
        program.run(Batch.of([Row(token, 0, i) for i, token in enumerate((0, 17, 49, 3))]))
    compare(programs, "x", 4, tolerance=1e-7)


def test_matrices_longer_than_a_shader_sees_are_cut(runner: PlanRunner) -> None:
    """Rows of 96 numbers in Q40 take 48 bytes of nibbles: 256 rows a shard."""
    limits = replace(runner.limits, max_range=20000)
    short = PlanRunner(runner.device, limits, runner.tier, replace(on_processor(runner.tier), limits=limits))
    short.kernels = runner.kernels
    source = ArraySource()
    sizes = (("t", 600), ("g", 544), ("u", 544))
    weights = [source.add(name, normal(n, 96, seed=ord(name)), FloatType.Q40) for name, n in sizes]
    buffers = (Buffer("x", 96), Buffer("out", 600), Buffer("hidden", 544))
    steps = (Embed("t", "x"), Matmul("x", "t", "out"), GatedMatmul("x", "g", "u", "hidden"))
    graph = Graph(buffers, (), tuple(weights), steps, 600, 3, 1, 8)
    programs = short.compile(graph, source), NumpyDevice().compile(graph, source)
    assert len(programs[0].plan.segment(0, 1, 0)) > 8
    for program in programs:
        program.run(Batch.of([Row(token, 0, i) for i, token in enumerate((255, 256, 599))]))
    for name in ("x", "out", "hidden"):
        compare(programs, name, 3)


@pytest.mark.parametrize("type", [BufferType.F32, BufferType.Q80])
@pytest.mark.parametrize("n_rows", [1, 7, 32])
def test_rms_norm_adds_then_scales(runner: PlanRunner, n_rows: int, type: BufferType) -> None:
    width = 576 if type is BufferType.Q80 else 75
    bench = OpBench(normal(n_rows, width) * 3)
    bench.weight("w", normal(width, seed=2))
    bench.buffer("first", width)
    bench.buffer("second", width, type)
    bench.ops += [RmsNorm("x", None, "w", "first", 1e-5), RmsNorm("x", "first", "w", "second", 1e-6)]
    programs = bench.run(runner)
    compare(programs, "x", n_rows)
    # One quant of a block may fall on the other side of a half.
    compare(programs, "second", n_rows, tolerance=2e-5 if type is BufferType.F32 else 1 / 127)


def test_q80_rows_are_what_the_codec_makes_of_them(runner: PlanRunner) -> None:
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
    program, oracle = bench.run(runner)
    oracle.write("quantized", program.buffer("normed", 20).astype(np.float64))
    assert np.array_equal(program.buffer("quantized", 20), oracle.buffer("quantized", 20).astype(np.float32))


def test_rms_norm_gathers_the_rows_that_want_logits(runner: PlanRunner) -> None:
    bench = OpBench(normal(6, 64))
    bench.weight("w", normal(64, seed=1))
    bench.buffer("last", 64, rows=Rows.LOGITS)
    bench.ops.append(RmsNorm("x", "x", "w", "last", 1e-5))
    rows = [Row(r, 0, r, wants_logits=r in (1, 4)) for r in range(6)]
    programs = bench.run(runner, rows)
    compare(programs, "last", 2)
    compare(programs, "x", 6)


@pytest.mark.parametrize("type", [BufferType.F32, BufferType.Q80])
@pytest.mark.parametrize("n_rows", [1, 7, 33])
@pytest.mark.parametrize("float_type", [FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80])
def test_gated_matmul(runner: PlanRunner, float_type: FloatType, n_rows: int, type: BufferType) -> None:
    hidden = 96 if type is BufferType.Q80 else 72
    bench = OpBench(normal(n_rows, 64))
    x = bench.norm(64, BufferType.Q80) if type is BufferType.Q80 and float_type.is_quantized else "x"
    bench.weight("gate", normal(hidden, 64, seed=1), float_type)
    bench.weight("up", normal(hidden, 64, seed=2), float_type)
    bench.buffer("out", hidden, type)
    bench.ops.append(GatedMatmul(x, "gate", "up", "out"))
    exact = rounding(runner, float_type)
    compare(bench.run(runner), "out", n_rows, exact if type is BufferType.F32 else exact + 1 / 127)


@pytest.mark.parametrize("type", [BufferType.F32, BufferType.Q80])
def test_gated_matmul_of_two_number_formats(runner: PlanRunner, type: BufferType) -> None:
    bench = OpBench(normal(3, 64))
    bench.weight("gate", normal(64, 64, seed=1), FloatType.Q40)
    bench.weight("up", normal(64, 64, seed=2), FloatType.F16)
    bench.buffer("out", 64, type)
    bench.ops.append(GatedMatmul("x", "gate", "up", "out"))
    compare(bench.run(runner), "out", 3, tolerance=2e-5 if type is BufferType.F32 else 1 / 127)


def attention_bench(
    n_rows: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    style: RopeStyle = RopeStyle.HALF_SPLIT,
    group: int | None = None,
    first_head: int = 0,
    type: BufferType = BufferType.F32,
) -> OpBench:
    width = (n_heads + 2 * n_kv_heads) * head_dim
    bench = OpBench(normal(n_rows, width))
    bench.caches.append(KvCache("kv", n_kv_heads, head_dim))
    bench.buffer("angles", head_dim)
    bench.buffer("out", n_heads * head_dim, type)
    frequencies = tuple(10000.0 ** (-2.0 * i / head_dim) for i in range(head_dim // 2))
    bench.ops += [
        RopeAngles(frequencies, "angles"),
        RopeStore("x", "angles", "kv", n_heads, style),
        Attention("x", "kv", "out", n_heads, group or n_heads // n_kv_heads, head_dim**-0.5, first_head),
    ]
    return bench


def test_rope_angles_stay_exact_at_far_positions(runner: PlanRunner) -> None:
    positions = (0, 1, 5, 4097, 131071)
    bench = OpBench(normal(len(positions), 8))
    bench.buffer("angles", 64)
    bench.ops.append(RopeAngles(tuple(500000.0 ** (-i / 32) for i in range(32)), "angles"))
    programs = bench.run(runner, [Row(r, 0, p) for r, p in enumerate(positions)], seq_len=1 << 17)
    compare(programs, "angles", len(positions), tolerance=5e-7)


@pytest.mark.parametrize("style", list(RopeStyle))
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim"), [(9, 3, 64), (8, 1, 20), (6, 2, 100), (34, 2, 16), (5, 1, 128), (2, 2, 256)]
)
def test_attention_of_one_prompt(
    runner: PlanRunner, n_heads: int, n_kv_heads: int, head_dim: int, style: RopeStyle
) -> None:
    programs = attention_bench(19, n_heads, n_kv_heads, head_dim, style).run(runner)
    n_q = n_heads * head_dim
    assert np.allclose(programs[0].buffer("x", 19)[:, :n_q], programs[1].buffer("x", 19)[:, :n_q], atol=1e-5)
    compare(programs, "out", 19, tolerance=3e-4)  # an f16 of the cache may round the other way


@pytest.mark.parametrize("head_dim", [64, 20])
@pytest.mark.parametrize("n_rows", [1, 7, 19])
def test_attention_into_q80(runner: PlanRunner, n_rows: int, head_dim: int) -> None:
    programs = attention_bench(n_rows, 8, 2, head_dim, type=BufferType.Q80).run(runner)
    compare(programs, "out", n_rows, tolerance=1.5 / 127)


def test_attention_where_a_node_begins_inside_a_group(runner: PlanRunner) -> None:
    """Query heads 2..6 of 9 over KV heads in groups of 3: KV heads 0, 1, 2 of which the first has one head here."""
    compare(attention_bench(5, 5, 3, 32, group=3, first_head=2).run(runner), "out", 5, tolerance=1e-4)


def test_attention_of_several_slots_across_steps(runner: PlanRunner) -> None:
    bench = attention_bench(12, 6, 2, 64)
    programs = bench.compile(runner, seq_len=40, n_slots=3)
    steps = [
        [Row(0, 2, 0), Row(1, 2, 1), Row(2, 2, 2), Row(3, 0, 0)],
        [Row(4, 0, 1), Row(5, 1, 0), Row(6, 2, 3)],
        [Row(7, 1, 1), Row(8, 2, 4), Row(9, 0, 2), Row(10, 0, 3), Row(11, 0, 4)],
        [Row(0, 2, 1)],  # back into the past: later positions no longer count
    ]
    for rows in steps:
        for program in programs:
            program.run(Batch.of(rows))
        compare(programs, "out", len(rows), tolerance=1e-4)


def test_attention_past_4096_positions(runner: PlanRunner) -> None:
    """The past is made of zero keys and values but for a few stored rows."""
    bench = attention_bench(8, 9, 3, 64)
    programs = bench.compile(runner, seq_len=4500)
    stored = (0, 127, 128, 1000, 4000, 4221)
    oracle = programs[1]
    for position in range(4400):
        oracle.keys["kv"][0, position] = oracle.stored["kv"][0, position] = np.zeros((3, 64))
    for program in programs:
        program.run(Batch.of([Row(i, 0, position) for i, position in enumerate(stored)]))
        program.run(Batch.of([Row(6, 0, 4222), Row(7, 0, 4223)]))
    compare(programs, "out", 2, tolerance=1e-4)


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_rope_store_adds_biases_and_norms_heads(runner: PlanRunner, biases: bool, rotates: bool) -> None:
    bench = attention_bench(7, 6, 2, 64)
    store = bench.ops[2]
    assert isinstance(store, RopeStore)
    names = tuple(bench.weight(f"{n}_bias", normal(w, seed=w)) for n, w in (("q", 384), ("k", 128), ("v", 128)))
    norms = bench.weight("q_norm", normal(64, seed=3)), bench.weight("k_norm", normal(64, seed=4))
    bench.ops[2] = replace(
        store,
        angles=store.angles if rotates else None,
        biases=names if biases else None,
        norms=norms,
        epsilon=1e-6,
    )
    programs = bench.run(runner)
    assert np.allclose(programs[0].buffer("x", 7)[:, :384], programs[1].buffer("x", 7)[:, :384], atol=2e-5)
    compare(programs, "out", 7, tolerance=3e-4)


@pytest.mark.parametrize("cache_type", [CacheType.Q80, CacheType.F32])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_over_other_caches(runner: PlanRunner, head_dim: int, cache_type: CacheType) -> None:
    bench = attention_bench(19, 6, 2, head_dim)
    bench.caches = [replace(bench.caches[0], type=cache_type)]
    # A quant of the cache may fall on the other side of a half.
    compare(bench.run(runner, n_slots=2), "out", 19, tolerance=1e-5 if cache_type is CacheType.F32 else 5e-3)


def test_attention_through_a_window(runner: PlanRunner) -> None:
    bench = attention_bench(50, 6, 2, 64)
    bench.ops[-1] = replace(bench.ops[-1], window=13)
    programs = bench.compile(runner, seq_len=300)
    oracle = programs[1]
    for position in range(300):
        oracle.keys["kv"][0, position] = oracle.stored["kv"][0, position] = np.zeros((2, 64))
    for rows in ([Row(r, 0, r) for r in range(50)], [Row(0, 0, 50)], [Row(1, 0, 280)]):
        for program in programs:
            program.run(Batch.of(rows))
        compare(programs, "out", len(rows), tolerance=3e-4)


def test_scaled_embeddings_and_angles(runner: PlanRunner) -> None:
    bench = OpBench(normal(3, 64))
    bench.buffer("angles", 8)
    bench.ops = [Embed("inputs", "x", scale=24.0), RopeAngles((1.0, 0.5, 0.25, 0.125), "angles", scale=1.25)]
    programs = bench.run(runner)
    compare(programs, "x", 3, tolerance=1e-7)
    compare(programs, "angles", 3, tolerance=5e-7)


@pytest.mark.parametrize("n_rows", [1, 17])
@pytest.mark.parametrize("up_type", [FloatType.Q40, FloatType.F16])
def test_gated_matmul_with_gelu(runner: PlanRunner, up_type: FloatType, n_rows: int) -> None:
    bench = OpBench(normal(n_rows, 64))
    bench.weight("gate", normal(64, 64, seed=1), FloatType.Q40)
    bench.weight("up", normal(64, 64, seed=2), up_type)
    bench.buffer("out", 64)
    bench.ops.append(GatedMatmul("x", "gate", "up", "out", GateActivation.GELU_TANH))
    compare(bench.run(runner), "out", n_rows, rounding(runner, up_type))


def test_matmul_of_activations_beyond_f16(runner: PlanRunner) -> None:
    bench = OpBench(normal(20, 64) * np.float32(1e5))
    bench.weight("w", normal(70, 64, seed=1), FloatType.F16)
    bench.buffer("out", 70)
    bench.ops.append(Matmul("x", "w", "out"))
    compare(bench.run(runner), "out", 20, rounding(runner, FloatType.F16))


@pytest.mark.parametrize(("n_experts", "k", "normalize"), [(5, 2, True), (128, 8, True), (60, 4, False)])
def test_experts_are_chosen_exactly(runner: PlanRunner, n_experts: int, k: int, normalize: bool) -> None:
    logits = normal(9, n_experts) * 3
    logits[1] = np.round(logits[1])  # equal ones: the lowest id first
    bench = OpBench(logits)
    bench.buffer("ids", k, BufferType.I32)
    bench.buffer("weights", k)
    bench.ops.append(TopExperts("x", "ids", "weights", normalize))
    programs = bench.run(runner)
    assert np.array_equal(programs[0].buffer("ids", 9), programs[1].buffer("ids", 9))
    compare(programs, "weights", 9)


@pytest.mark.parametrize("max_range", [128 << 20, 4 * 2 * 64 * 64])
@pytest.mark.parametrize(("float_type", "type"), [(FloatType.Q40, BufferType.Q80), (FloatType.F16, BufferType.F32)])
@pytest.mark.parametrize("n_rows", [1, 12])
def test_mixture_of_experts(
    runner: PlanRunner, n_rows: int, float_type: FloatType, type: BufferType, max_range: int
) -> None:
    """Experts 3 to 10 of 12 are here, in one piece or cut; the others' part is left out."""
    limits = replace(runner.limits, max_range=max_range)
    tuning = replace(on_processor(runner.tier), limits=limits)
    cut = PlanRunner(runner.device, limits, runner.tier, tuning)
    cut.kernels = runner.kernels
    dim, hidden, k, n_experts = 64, 64, 3, 8
    bench = OpBench(normal(n_rows, dim))
    x = bench.norm(dim, type)
    bench.weight("router", normal(12, dim, seed=1))
    experts = {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}
    for number, (name, (n, columns)) in enumerate(experts.items()):
        parts = [
            bench.source.add(f"{name}.{e}", normal(n, columns, seed=100 * number + e), float_type).parts[0]
            for e in range(n_experts)
        ]
        bench.weights.append(Weight(name, float_type, n_experts * n, columns, tuple(parts), n_experts))
    for name, width, kind in (
        ("logits", 12, BufferType.F32),
        ("ids", k, BufferType.I32),
        ("weights", k, BufferType.F32),
        ("hidden", k * hidden, type),
        ("out", dim, BufferType.F32),
    ):
        bench.buffer(name, width, kind)
    bench.ops += [
        Matmul("x", "router", "logits"),
        TopExperts("logits", "ids", "weights", True),
        ExpertGatedMatmul(x, "ids", "gate", "up", "hidden", 3),
        ExpertMatmul("hidden", "ids", "weights", "down", "out", 3),
    ]
    compare(bench.run(cut), "out", n_rows, tolerance=2e-5 if type is BufferType.F32 else 5e-3)


@pytest.mark.parametrize(("n_logits", "k"), [(49152 // 8 + 5, 64), (4097, 1), (50, 50), (1500, 500)])
def test_candidates_are_exact(runner: PlanRunner, n_logits: int, k: int) -> None:
    logits = normal(4, n_logits) * 5
    logits[1] = np.round(logits[1])  # many equal ones: the lowest ids count
    logits[2] = 0.0
    logits[2, ::2] = -0.0
    logits[3] = np.sort(logits[3])  # each one enters the list
    bench = OpBench(logits)
    bench.buffers = [Buffer("x", n_logits, rows=Rows.LOGITS)]
    bench.buffer("all", n_logits)
    bench.ops = [Embed("inputs", "all")]
    bench.weight("ones", np.ones(n_logits, np.float32))
    bench.buffer("values", k, rows=Rows.LOGITS)
    bench.buffer("ids", k, BufferType.I32, Rows.LOGITS)
    bench.buffer("log_sum_exp", 1, rows=Rows.LOGITS)
    bench.ops += [RmsNorm("all", None, "ones", "x", 1e-5), TopCandidates("x", "values", "ids", "log_sum_exp", 7)]
    temperatures = (1.0, 0.3, 2.0, 1.0)
    rows = [Row(r, 0, r, True, temperature) for r, temperature in enumerate(temperatures)]
    program, oracle = bench.run(runner, rows)
    oracle.values["x"] = program.buffer("x", 4).astype(np.float64)
    oracle.top_candidates(bench.ops[-1], Batch.of(rows))
    assert np.array_equal(program.buffer("ids", 4), oracle.values["ids"])
    assert np.array_equal(program.buffer("values", 4), oracle.values["values"])
    compare((program, oracle), "log_sum_exp", 4)
