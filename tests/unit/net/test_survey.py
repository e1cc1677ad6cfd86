"""In which order ways are measured, and which nodes go where some are missing."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.net.survey import Missing, explain, left_out, rounds


@given(machines=st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_every_pair_is_measured_once_and_no_machine_with_two_at_a_time(machines: list[int]) -> None:
    found = rounds(machines)
    pairs = [pair for together in found for pair in together]
    assert sorted(pairs) == list(itertools.combinations(range(len(machines)), 2))
    for together in found:
        used = [machine for pair in together for machine in {machines[node] for node in pair}]
        assert len(used) == len(set(used))


def test_machines_of_their_own_need_a_round_a_node() -> None:
    assert [len(together) for together in rounds(range(8))] == [4] * 7
    assert len(rounds(range(2))) == 1
    assert len(rounds("aaaa")) == 6


@given(
    n_nodes=st.integers(2, 8),
    data=st.data(),
)
def test_those_who_stay_reach_each_other(n_nodes: int, data: st.DataObject) -> None:
    pairs = list(itertools.combinations(range(1, n_nodes + 1), 2))
    closed = data.draw(st.lists(st.sampled_from(pairs), unique=True))
    dead = data.draw(st.lists(st.integers(1, n_nodes), unique=True))
    missing = [Missing(*pair, "closed") for pair in closed] + [Missing(node, node, "gone") for node in dead]
    leaving = left_out(missing)
    staying = set(range(1, n_nodes + 1)) - set(leaving)
    assert all(not staying.issuperset(pair) for pair in closed)
    assert staying.isdisjoint(dead)
    assert all(ways for ways in leaving.values())
    # Nobody goes for nothing.
    assert all(any({way.first, way.second} & {node} for way in ways) for node, ways in leaving.items())


def test_the_one_that_the_others_cannot_reach_goes() -> None:
    assert list(left_out([Missing(1, 2, "closed")])) == [2]
    assert list(left_out([Missing(1, 2, "closed"), Missing(1, 3, "closed")])) == [1]
    assert list(left_out([Missing(1, 2, "closed"), Missing(2, 2, "gone")])) == [2]
    assert left_out([]) == {}


def test_the_reason_names_who_goes_and_whom_it_misses() -> None:
    ways = [Missing(1, 3, "worker a cannot reach worker c: no route"), Missing(2, 3, "worker b cannot reach worker c")]
    assert explain("worker c", ways[:1]) == "worker c cannot take part: worker a cannot reach worker c: no route"
    assert explain("worker c", ways).endswith("no route; so it is with 1 more")
    assert explain("worker c", [Missing(3, 3, "worker c: connection reset")]) == "worker c: connection reset"
