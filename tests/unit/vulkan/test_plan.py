"""What a plan promises on any device, without one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import CacheType, Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.vulkan import tuning as tune
from dllama_gpu.vulkan.dispatch import Barrier, Binding, Dispatch, long_grid, with_barriers
from dllama_gpu.vulkan.limits import DeviceLimits, MatrixSize, Tier
from dllama_gpu.vulkan.plan import STEP, ProgramPlan, Use, plan_program
from dllama_gpu.vulkan.step import step_bytes, write_step
from tests.support.arrays import ArraySource
from tests.support.models import random_tensors, small_spec

LEAST = DeviceLimits(subgroup_size=16, max_invocations=128, shared_bytes=16 << 10)
LIMITS = st.builds(
    DeviceLimits,
    subgroup_size=st.sampled_from([1, 4, 8, 16, 32, 64, 128]),
    max_invocations=st.sampled_from([128, 256, 512, 1024]),
    shared_bytes=st.sampled_from([16 << 10, 32 << 10, 48 << 10]),
    is_cpu=st.booleans(),
    matrix=st.sampled_from([None, MatrixSize(16, 16, 16), MatrixSize(16, 8, 16), MatrixSize(8, 8, 32)]),
)
TIERS = st.sampled_from(Tier)
MATRIX = replace(LEAST, subgroup_size=32, shared_bytes=48 << 10, matrix=MatrixSize(16, 8, 16))


def small_graph(vocab_size: int = 100, **options: object) -> tuple[Graph, ArraySource]:
    spec = small_spec(vocab_size=vocab_size, dim=64, n_heads=2, n_kv_heads=1, head_dim=32)
    source = ArraySource(spec)
    for name, values in random_tensors(spec, seed=1):
        if name.endswith("norm"):
            source.add(name, values[0])
        else:
            source.add(name, values, FloatType.Q40)
    return build_graph(spec, source.tensors, GraphOptions(**{"max_rows": 40, "seq_len": 50, **options})), source


def plan(limits: DeviceLimits = LEAST, tier: Tier = Tier.BASE, **options: object) -> ProgramPlan:
    return plan_program(small_graph(**options)[0], limits, tier)


def shared_bytes(dispatch: Dispatch, tier: Tier) -> int:
    """Of the shaders that keep the most, counted from their declarations."""
    c = dispatch.specialization
    name = dispatch.shader.removesuffix("_subgroup").removesuffix("_dot")
    if name in ("matmul_matrix", "gated_matmul_matrix"):
        rows, batch, part_batch, n = c[2], c[3], c[5], c[7]
        patch_rows = rows // 2 if name.startswith("gated") else rows
        return max(160 * (rows + batch), batch // part_batch * n * (4 * patch_rows + 16))
    if name in ("matvec", "gated_matvec"):
        lanes, rows, batch = c[0], c[3], c[4]
        sums = (lanes // 4 if tier >= Tier.SUBGROUP else lanes) * rows * batch
        return 4 * sums + (128 * batch if name == "gated_matvec" else 0)
    if name == "attention":
        lanes, heads, units = c[0], c[2], c[3]
        return 32 * heads * units + 4 * heads * (lanes + 8) + 36 * lanes + 32 * units + 96
    if name in ("top_candidates", "merge_candidates"):
        return 8 * c[1] + 8 * c[0] + 4
    if name == "rms_norm":
        return 20 * c[0]
    return 0


@settings(deadline=None, max_examples=60)
@given(LIMITS, TIERS, st.sampled_from([1, 2, 8, 16, 40]))
def test_every_dispatch_stays_inside_the_limits(limits: DeviceLimits, tier: Tier, rows: int) -> None:
    found = plan(limits, tier)
    sizes = {allocation.name: allocation.n_bytes for allocation in found.allocations}
    for item in found.segment(0, rows, rows):
        if isinstance(item, Barrier):
            continue
        lanes = item.specialization[0]
        assert lanes <= limits.max_invocations
        assert lanes & (lanes - 1) == 0
        assert shared_bytes(item, tier) <= limits.shared_bytes
        assert len(item.bindings) <= 8
        assert len(item.push) <= 128
        assert all(1 <= n <= 65535 for n in item.grid)
        for binding in item.bindings:
            assert binding.offset % 256 == 0
            assert 0 < binding.n_bytes <= limits.max_range
            assert binding.offset + binding.n_bytes <= sizes[binding.allocation]


@settings(deadline=None, max_examples=200)
@given(LIMITS, st.integers(1, 300000), st.integers(9, 4096))
def test_tiles_of_matrix_units_fit_the_device(limits: DeviceLimits, n_rows: int, batch_rows: int) -> None:
    tuning = tune.for_device(limits, Tier.MATRIX)
    if not tune.uses_matrices(tuning, FloatType.Q40, True, batch_rows):
        return
    tile = tune.matrix_tile(tuning, n_rows, batch_rows)
    assert tile.shared_bytes <= limits.shared_bytes
    assert tile.subgroups * limits.subgroup_size <= limits.max_invocations
    assert tile.batch < 2 * batch_rows, "a tile's rows of x are mostly there"
    assert tile.rows % 64 == 0, "a block of 32 numbers behind a gate"


@pytest.mark.parametrize(
    ("n_rows", "batch_rows", "tile"),
    [
        (14336, 512, (128, 128)),
        (3000, 512, (64, 128)),
        (1100, 512, (64, 64)),
        (576, 512, (64, 32)),
        (576, 16, (64, 16)),
    ],
)
def test_a_large_card_takes_the_largest_tiles_that_keep_it_busy(
    n_rows: int, batch_rows: int, tile: tuple[int, int]
) -> None:
    card = replace(MATRIX, max_invocations=1024, matrix=MatrixSize(16, 16, 16))
    found = tune.matrix_tile(tune.for_device(card, Tier.MATRIX), n_rows, batch_rows)
    assert (found.rows, found.batch) == tile


@settings(deadline=None, max_examples=200)
@given(LIMITS, TIERS, st.integers(1, 300000), st.integers(1, 2000), st.integers(1, 8))
def test_teams_cover_rows_evenly(limits: DeviceLimits, tier: Tier, n_rows: int, n_units: int, batch_rows: int) -> None:
    tuning = tune.for_device(limits, tier)
    shape = tune.matvec(tuning, n_rows, n_units, batch_rows)
    assert shape.workgroup % shape.team == 0
    gated = tune.gated_matvec(tuning, batch_rows)
    assert gated.workgroup % gated.team == 0
    assert 64 % (gated.workgroup // gated.team * gated.rows) == 0, "all teams must take as many turns"
    assert gated.rows % 2 == 0, "gate and up belong together"


@given(st.integers(1, 10**7), st.integers(1, 100))
def test_long_grids_have_room_for_all_groups(n_groups: int, rows: int) -> None:
    x, y, z = long_grid(n_groups, rows)
    assert x * y >= n_groups
    assert max(x, y) <= 65535
    assert z == rows


def dispatch(*bindings: Binding) -> Dispatch:
    return Dispatch("shader", (1,), bindings, b"", (1, 1, 1))


def test_barriers_stand_where_a_dispatch_needs_another_and_nowhere_else() -> None:
    a, b, c = (Binding(name, 0, 64) for name in "abc")
    upper = Binding("a", 64, 64)
    work = [
        dispatch(a, b.writing()),
        dispatch(a, c.writing()),  # both only read a
        dispatch(b, upper.writing()),  # reads what was written
        dispatch(a),  # other bytes of a
        dispatch(a.writing()),  # writes what was read
        dispatch(b, c),
    ]
    kinds = ["|" if isinstance(item, Barrier) else "d" for item in with_barriers(work)]
    assert "".join(kinds) == "dd|dd|dd"


@pytest.mark.parametrize("rows", [9, 16, 17, 33, 40])
def test_matrix_units_multiply_many_rows_in_whole_tiles(rows: int) -> None:
    items = [item for item in plan(MATRIX, Tier.MATRIX).segment(0, rows, 1) if isinstance(item, Dispatch)]
    found = [item for item in items if item.shader in ("matmul_matrix", "gated_matmul_matrix")]
    assert {item.shader for item in found} == {"matmul_matrix", "gated_matmul_matrix"}
    for item in found:
        workgroup, _, tile_rows, batch, part_rows, part_batch, m, n, k = item.specialization[:9]
        assert workgroup == 32 * (tile_rows // part_rows) * (batch // part_batch) <= MATRIX.max_invocations
        assert shared_bytes(item, Tier.MATRIX) <= MATRIX.shared_bytes
        assert (part_rows // 2 % m, part_batch % n, 32 % k) == (0, 0, 0)
        assert item.subgroup_size == 32
        assert item.grid[0] * batch >= rows
        assert tile_rows % 64 == 0, "a block of 32 numbers behind a gate"
    head = items[-3]
    assert head.shader.startswith("matvec"), "one row of logits needs no tiles"


@pytest.mark.parametrize(
    ("type", "packed", "rows", "wanted"),
    [
        (FloatType.Q40, True, 9, True),
        (FloatType.F16, False, 9, True),
        (FloatType.F32, False, 9, False),  # exact weights, and activations that were to stay exact
        (FloatType.Q40, False, 9, False),
        (FloatType.Q40, True, 8, False),
    ],
)
def test_f16_is_used_where_nothing_more_exact_is_asked_for(
    type: FloatType, packed: bool, rows: int, wanted: bool
) -> None:
    assert tune.uses_matrices(tune.for_device(MATRIX, Tier.MATRIX), type, packed, rows) is wanted
    assert not tune.uses_matrices(tune.for_device(MATRIX, Tier.DOT), type, packed, rows)


def test_a_tier_has_only_its_own_shaders_more_than_the_one_below() -> None:
    """So that a tier that fails the self-test takes nothing else with it."""
    tiers = [plan(MATRIX, tier) for tier in Tier]
    for rows in (1, 40):
        shaders = [{item.shader for item in one.segment(0, rows, rows) if isinstance(item, Dispatch)} for one in tiers]
        for lower, higher, tier in zip(shaders, shaders[1:], list(Tier)[1:], strict=False):
            assert all(shader.endswith(f"_{tier.name.lower()}") for shader in higher - lower)
        assert shaders[Tier.MATRIX] - shaders[Tier.DOT] == (
            {"halves_matrix", "matmul_matrix", "gated_matmul_matrix"} if rows > 1 else set()
        )


def test_the_work_of_a_step_counts_its_matrices_for_every_row() -> None:
    found = plan()
    matrices = {name: matrix.n_rows * matrix.n_columns for name, matrix in found.around.matrices.items()}
    in_layers = sum(matrices.values()) - sum(n for name, n in matrices.items() if name in ("embedding", "head"))
    items = [item for item in found.segment(0, 32, 0) if isinstance(item, Dispatch)]
    assert sum(item.work for item in items if item.shader != "attention") == 32 * in_layers
    assert all(item.work for item in items if item.shader == "attention")


def test_no_rows_of_logits_leave_the_head_out() -> None:
    shaders = {item.shader for item in plan().segment(0, 8, 0) if isinstance(item, Dispatch)}
    assert "top_candidates" not in shaders
    assert "attention" in shaders


def test_a_token_takes_one_barrier_less_than_dispatches() -> None:
    """Each op of a layer needs the one before it."""
    items = plan(tier=Tier.DOT).segment(0, 1, 1)
    n_barriers = sum(isinstance(item, Barrier) for item in items)
    assert n_barriers <= len(items) - n_barriers - 1


@pytest.mark.parametrize(("n", "bucket"), [(1, 1), (2, 2), (3, 4), (9, 16), (33, 40), (40, 40)])
def test_buckets_are_powers_of_two_and_at_most_the_rows_there_are(n: int, bucket: int) -> None:
    assert plan().buckets(n, 0) == (bucket, 0)
    assert plan(max_logit_rows=3).buckets(n, 3) == (bucket, 3)


@pytest.mark.parametrize("cache_type", list(CacheType))
def test_caches_have_room_for_every_position(cache_type: CacheType) -> None:
    graph, _ = small_graph(cache_type=cache_type, n_slots=3)
    found = plan_program(graph, LEAST, Tier.BASE)
    taken = sum(allocation.n_bytes for allocation in found.allocations if allocation.use is Use.CACHE)
    assert taken >= graph.kv_cache_bytes()


def test_weights_fill_their_allocations_without_overlap() -> None:
    graph, source = small_graph()
    found = plan_program(graph, LEAST, Tier.DOT)
    filled = {a.name: np.zeros(a.n_bytes, np.uint8) for a in found.allocations if a.use is Use.WEIGHT}
    for chunk in found.weight_chunks(source):
        part = filled[chunk.allocation][chunk.offset : chunk.offset + len(chunk.content)]
        assert part.shape == chunk.content.shape
        assert not part.any()
        part[:] = 1
    for name, marks in filled.items():
        gap = np.count_nonzero(marks == 0)  # in front of the scales
        assert gap < 256 or name in found.constants


def test_a_step_buffer_holds_rows_and_the_rows_that_want_logits() -> None:
    words = np.zeros(step_bytes(3) // 4, np.uint32)
    write_step(Batch.of([Row(7, 1, 20), Row(8, 2, 30, True, 0.5)]), words)
    assert words[:8].tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
    assert words[8:12].tolist() == [7, 1, 20, 0]
    assert words[16:19].tolist() == [8, 2, 30]
    assert words[12] == 1
    assert words[13:14].view(np.float32)[0] == 0.5
    assert step_bytes(3) == plan(max_rows=3).around.step.n_bytes
    assert plan().allocations[0].name == STEP


def test_frequencies_are_fractions_of_a_turn() -> None:
    found = plan()
    content = np.frombuffer(next(iter(found.constants.values())), np.uint64)
    frequencies = next(iter(found.around.frequencies))
    assert np.allclose(content / 2.0**64 * 2 * math.pi, frequencies, rtol=1e-15)


def test_too_much_for_a_shader_is_said_in_a_sentence() -> None:
    with pytest.raises(DllamaError, match=r"this GPU's shaders see 0 MiB of a buffer"):
        plan(replace(LEAST, max_range=8192))
    graph, _ = small_graph(vocab_size=1000, n_candidates=800)
    with pytest.raises(DllamaError, match="at most 768 candidates, not 800"):
        plan_program(graph, LEAST, Tier.BASE)
