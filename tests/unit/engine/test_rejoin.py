from __future__ import annotations

import pytest

from dllama_gpu.engine.rejoin import Rejoin, ReturnWatch
from dllama_gpu.errors import DllamaError
from tests.unit.engine.fake_program import FakeProgram
from tests.unit.engine.test_engine import counts_up, wait_until


class Nodes:
    """Those that answered."""

    def __init__(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


class Network:
    """Says which workers are missing at each attempt, and fails to load when told to."""

    def __init__(self, *missing: list[str], too_small: bool = False) -> None:
        self.missing = list(missing)
        self.too_small = too_small
        self.now = 100.0
        self.connected: list[Nodes] = []
        self.program = FakeProgram(counts_up)
        self.rejoin = Rejoin(self.connect, self.load, grace_seconds=5, clock=lambda: self.now)

    def connect(self) -> tuple[Nodes, dict[str, str]]:
        self.connected.append(Nodes())
        return self.connected[-1], {name: f"{name} is gone" for name in self.missing.pop(0)}

    def load(self, nodes: Nodes) -> FakeProgram:
        assert nodes.is_open
        if self.too_small:
            raise DllamaError("the model does not fit")
        return self.program


def test_when_all_are_there_it_goes_on_at_once() -> None:
    network = Network([])
    assert network.rejoin(0) is network.program
    assert network.connected[0].is_open


def test_a_missing_worker_is_waited_for_and_then_done_without() -> None:
    network = Network(["b"], ["b"], ["b"])
    for attempt, now in enumerate((100.0, 104.0)):
        network.now = now
        with pytest.raises(DllamaError, match="b is gone"):
            network.rejoin(attempt)
    network.now = 105.0
    assert network.rejoin(2) is network.program
    assert [nodes.is_open for nodes in network.connected] == [False, False, True]


def test_a_worker_that_comes_back_is_used_again() -> None:
    network = Network(["b"], [])
    with pytest.raises(DllamaError):
        network.rejoin(0)
    assert network.rejoin(1) is network.program


def test_each_loss_has_its_own_grace() -> None:
    network = Network([], ["b"])
    network.rejoin(0)
    network.now += 1000
    with pytest.raises(DllamaError, match="b is gone"):
        network.rejoin(0)


def test_who_was_given_up_before_is_not_waited_for_again() -> None:
    network = Network(["b"], ["b"], ["b", "c"])
    with pytest.raises(DllamaError):
        network.rejoin(0)
    network.now += 10
    network.rejoin(1)
    assert network.rejoin.missing == ("b",)
    network.missing.insert(0, ["b"])
    assert network.rejoin(0) is network.program
    with pytest.raises(DllamaError, match="c is gone"):
        network.rejoin(0)


def test_a_watch_finds_who_is_back_and_forgets_it_when_asked_anew() -> None:
    there: set[str] = set()
    watch = ReturnWatch(lambda name: name in there, every_seconds=0.001)
    watch.look_for(["b", "c"])
    assert not watch.has_found
    there.add("c")
    wait_until(lambda: watch.has_found)
    watch.look_for(["b"])
    assert not watch.has_found
    there.add("b")
    wait_until(lambda: watch.has_found)
    watch.close()


def test_nodes_that_cannot_carry_the_model_are_let_go_until_there_are_more() -> None:
    network = Network([], [], too_small=True)
    with pytest.raises(DllamaError, match="does not fit"):
        network.rejoin(0)
    assert not network.connected[0].is_open
    network.too_small = False
    assert network.rejoin(1) is network.program
