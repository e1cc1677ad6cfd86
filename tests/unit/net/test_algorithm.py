"""The choice of an all-reduce algorithm follows the costs that its documentation states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net.algorithm import choose, choose_algorithm, predict_seconds
from dllama_gpu.net.links import trips_summary

DIRECT, TWO_HOPS = Algorithm.DIRECT, Algorithm.REDUCE_SCATTER_ALL_GATHER
WIRES = st.sampled_from([FloatType.F32, FloatType.F16, FloatType.Q80])


@given(n_rows=st.integers(1, 512), n_blocks=st.integers(1, 300), wire=WIRES)
def test_two_nodes_never_gain_by_a_second_hop(n_rows: int, n_blocks: int, wire: FloatType) -> None:
    assert choose(n_rows, 32 * n_blocks, 2, wire, 1e-4, 1e8) is DIRECT


def test_one_row_among_few_nodes_goes_directly_and_a_prompt_among_many_does_not() -> None:
    assert choose_algorithm(1, 2048, 4, FloatType.Q80) is DIRECT
    assert choose_algorithm(32, 4096, 4, FloatType.Q80) is TWO_HOPS


@given(
    n_rows=st.integers(1, 256),
    width=st.integers(1, 9000),
    n_nodes=st.integers(2, 64),
    wire=WIRES,
    latency=st.floats(1e-6, 0.1),
    bandwidth=st.floats(1e5, 1e10),
)
def test_the_faster_algorithm_is_chosen(
    n_rows: int, width: int, n_nodes: int, wire: FloatType, latency: float, bandwidth: float
) -> None:
    link = (n_rows, width, n_nodes, wire, latency, bandwidth)
    direct, two_hops = (predict_seconds(algorithm, *link) for algorithm in (DIRECT, TWO_HOPS))
    assert choose(*link) is (TWO_HOPS if two_hops < direct else DIRECT)


@given(
    n_rows=st.integers(1, 256), n_blocks=st.integers(1, 16), n_nodes=st.integers(3, 16), bandwidth=st.floats(1e6, 1e9)
)
def test_a_slower_wire_never_makes_the_short_way_better_for_large_rows(
    n_rows: int, n_blocks: int, n_nodes: int, bandwidth: float
) -> None:
    width = 32 * n_nodes * n_blocks  # even spans
    shape = (n_rows, width, n_nodes, FloatType.F32)
    if choose(*shape, 1e-4, bandwidth) is TWO_HOPS:
        assert choose(*shape, 1e-4, bandwidth / 10) is TWO_HOPS


@pytest.mark.parametrize("n_nodes", [3, 4, 8])
def test_without_latency_the_times_are_those_of_the_bytes(n_nodes: int) -> None:
    n_bytes = 1000 * 64 * n_nodes * 4
    bandwidth = 1e9
    shape = (1000, 64 * n_nodes, n_nodes, FloatType.F32)
    assert predict_seconds(DIRECT, *shape, 0, bandwidth) == pytest.approx((n_nodes - 1) * n_bytes / bandwidth, rel=1e-3)
    assert predict_seconds(TWO_HOPS, *shape, 0, bandwidth) == pytest.approx(
        2 * (n_nodes - 1) / n_nodes * n_bytes / bandwidth, rel=1e-2
    )


def test_rows_narrower_than_the_nodes_have_blocks_are_not_worth_spans() -> None:
    """One node would make all sums and send them to all others."""
    assert choose(100, 32, 8, FloatType.Q80, 0.0, 1e8) is DIRECT


def test_the_shortest_round_trip_and_the_mean_of_what_others_take_longer() -> None:
    assert trips_summary([2.0] * 10) == (2.0, 0.0)
    assert trips_summary([3.0, 2.0, 3.0, 4.0]) == (2.0, pytest.approx(1.0))
    calm = [1.0] * 15 + [2.0] * 5
    assert trips_summary([*calm, 500.0])[1] == pytest.approx(6 / 21), "one long pause counts as the longest below it"
    assert trips_summary([1.0] * 5 + [2.0] * 5)[1] == pytest.approx(0.5)
