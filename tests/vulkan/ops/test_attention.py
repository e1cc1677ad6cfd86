"""What has to do with positions by the shaders of every tier, against the NumPy oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import Attention, BufferType, CacheType, KvCache, RopeAngles, RopeStore
from dllama_gpu.model.spec import RopeStyle
from tests.support.op_bench import OpBench, compare, normal

if TYPE_CHECKING:
    from tests.support.plan_runner import PlanRunner


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
