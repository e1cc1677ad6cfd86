"""Advice names the nodes that slow a cluster down or only bring memory, and tables say what a plan holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.advice import Outlook, advice, consult
from dllama_gpu.graph.division import DoesNotFitError
from dllama_gpu.graph.plan import plan
from dllama_gpu.graph.plan_text import describe
from dllama_gpu.graph.profile import Link, NodeProfile, PlanOptions
from dllama_gpu.graph.subset import best_subset
from tests.support.clusters import everywhere, llama_8b, node

MODEL = llama_8b()
OPTIONS = PlanOptions(2048)
PIS = [node(f"pi{number}", gigabytes=8) for number in range(1, 5)]


def look(nodes: list[NodeProfile], options: PlanOptions = OPTIONS) -> Outlook:
    return consult(*MODEL, nodes, everywhere(), options)


def test_nodes_that_all_help_need_no_advice() -> None:
    outlook = look(PIS)
    assert outlook.advice is None
    assert outlook.plan == outlook.best


def test_a_node_behind_a_slow_link_is_better_left_out() -> None:
    def links(first: str, second: str) -> Link:
        return Link(3e-3 if "pi4" in (first, second) else 2e-4, 117e6)

    everyone, best = plan(*MODEL, PIS, links, OPTIONS), best_subset(*MODEL, PIS, links, OPTIONS)
    assert best.names == ("pi1", "pi2", "pi3")
    said = advice(everyone, best)
    assert said is not None
    assert said.startswith(
        f"leave out pi4: with it {everyone.tokens_per_second:.3g} tokens/s, without it {best.tokens_per_second:.3g}; "
    )
    assert "its share saves" in said
    assert "ms of exchanges, which take 3." in said


def test_boards_beside_a_fast_desktop_are_better_left_out_together() -> None:
    said = look([node("desktop", gigabytes_per_second=400), *PIS]).advice
    assert said is not None
    assert said.startswith("leave out pi1, pi2, pi3 and pi4: with them")


def test_a_node_whose_ops_take_long_slows_computing() -> None:
    def fast_links(first: str, second: str) -> Link:
        return Link(0.0, 1e15)

    nodes = [node("root"), node("old", gigabytes_per_second=0.01, op_seconds=0.01)]
    said = advice(plan(*MODEL, nodes, fast_links, OPTIONS), best_subset(*MODEL, nodes, fast_links, OPTIONS))
    assert said is not None
    assert "; it included, computing a token takes" in said


def test_nodes_that_only_bring_memory_are_told_so() -> None:
    outlook = look([node("gpu", gigabytes_per_second=400, gigabytes=3), *PIS[:2]])
    assert outlook.plan is not None
    assert outlook.advice is not None
    assert outlook.advice.startswith("pi1 and pi2 only add memory: gpu with 4.86 GB of memory would reach")
    assert outlook.advice.endswith(f"without them, instead of {outlook.best.tokens_per_second:.3g}")


def test_shares_by_hand_that_are_slower_are_told_so() -> None:
    outlook = look(PIS, replace(OPTIONS, ratio=(5.0, 1.0, 1.0, 1.0)))
    assert outlook.advice is not None
    assert outlook.advice.startswith("leave out --ratio: these shares reach")
    with pytest.raises(DllamaError, match="the ratio has 1 shares for 4 nodes"):
        look(PIS, replace(OPTIONS, ratio=(1.0,)))


def test_where_one_node_cannot_take_part_the_others_are_planned() -> None:
    outlook = look([*PIS[:2], node("thermostat", gigabytes=0.001)])
    assert outlook.plan is None
    assert outlook.best.names == ("pi1", "pi2")
    text = describe(outlook, MODEL[0])
    assert text.startswith("not with all nodes: thermostat has 1.0 MB of memory")
    assert "pi2" in text


def test_where_nothing_fits_the_missing_memory_is_told() -> None:
    with pytest.raises(DoesNotFitError, match=r"these 2 nodes can give 2\.00 GB: 2\.\d+ GB are missing"):
        look([node("a", gigabytes=1), node("b", gigabytes=1)])


def test_the_tables_hold_every_node_every_link_and_the_totals() -> None:
    outlook = look([node("desktop", gigabytes_per_second=400), *PIS[:2]])
    lines = describe(outlook, MODEL[0]).splitlines()
    assert lines[0].split()[:5] == ["node", "heads", "KV", "heads", "hidden"]
    shares = [line.split() for line in lines[1:4]]
    assert [cells[0] for cells in shares] == ["desktop", "pi1", "pi2"]
    for column, total in ((1, 32), (3, 14336), (4, 128256)):
        assert sum(int(cells[column]) for cells in shares) == total
        assert int(lines[4].split()[column]) == total
    assert [line.split("  ")[0] for line in lines[7:10]] == ["desktop - pi1", "desktop - pi2", "pi1 - pi2"]
    assert outlook.plan is not None
    (decode,) = (line for line in lines if line.startswith("decode"))
    assert f"{outlook.plan.tokens_per_second:.2f} tokens/s" in decode
    assert any(line.startswith("best nodes   desktop: ") for line in lines)
    assert lines[-1].startswith("advice       leave out pi1 and pi2")
