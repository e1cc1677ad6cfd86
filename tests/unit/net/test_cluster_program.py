"""The root's program with a program of its own and no workers: what does not depend on the network."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, ExchangeHandler, Row
from dllama_gpu.graph.graph import Graph
from dllama_gpu.net.addresses import Address
from dllama_gpu.net.channel import Channel
from dllama_gpu.net.cluster_program import ClusterProgram, Worker
from dllama_gpu.net.mesh import Mesh, PeerLostError
from dllama_gpu.net.messages import Failure, NodeReport, StepBatch

GRAPH = Graph((), (), (), (), vocab_size=10, max_rows=4, n_slots=1, seq_len=8)
STEP = Batch.of([Row(1, 0, 0, True)])


class OwnProgram:
    """Does in a step what the test says."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.graph = GRAPH
        self.act = act

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        self.act()

    def buffer(self, name: str, n_rows: int) -> np.ndarray:
        return np.zeros((n_rows, 1), np.float32)


class Rig:
    """A root with two workers whose ends the test holds."""

    def __init__(self) -> None:
        self.act: Callable[[], None] = lambda: None
        control = [socket.socketpair() for _ in range(2)]
        data = [socket.socketpair() for _ in range(2)]
        self.mesh = Mesh(0, {rank: ends[0] for rank, ends in enumerate(data, 1)}, timeout=1.0)
        self.workers = [Channel(ends[1], "the root", timeout=5.0) for ends in control]
        report = NodeReport("0.1.0", "", "", "", None, {}, None)
        seen = [
            Worker(rank, Address("10.0.0.1", rank), Channel(ends[0], f"worker 10.0.0.1:{rank}", timeout=5.0), report)
            for rank, ends in enumerate(control, 1)
        ]
        program = OwnProgram(lambda: self.act())
        self.program = ClusterProgram(program, lambda exchange, batch: None, self.mesh, seen, [GRAPH] * 3)
        self._ends = [end for pair in data for end in pair] + [worker.channel for worker in seen] + self.workers

    def close(self) -> None:
        self.mesh.close()
        for end in self._ends:
            end.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    one = Rig()
    yield one
    one.close()


def lose(rank: int) -> Callable[[], None]:
    def act() -> None:
        raise PeerLostError(rank, f"node {rank}: connection reset")

    return act


def test_every_worker_hears_of_a_step(rig: Rig) -> None:
    rig.program.run(STEP)
    for worker in rig.workers:
        assert worker.receive(StepBatch).tokens == np.array([1], "<i4").tobytes()


def test_the_worker_that_closed_without_a_word_is_to_blame_and_not_the_one_that_noticed_it(rig: Rig) -> None:
    rig.program.run(STEP)
    rig.act = lose(1)
    rig.workers[0].send(Failure("node 2: connection reset", 2))
    rig.workers[1].connection.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerLostError, match=r"^worker 10\.0\.0\.1:2 left during token 2 \(the connection was closed\)"):
        rig.program.run(STEP)


def test_a_silent_worker_is_blamed_by_what_the_exchange_says(rig: Rig) -> None:
    rig.act = lose(2)
    with pytest.raises(
        PeerLostError, match=r"^worker 10\.0\.0\.1:2 left during the prompt \(connection reset\); restart"
    ):
        rig.program.run(STEP)


def test_a_worker_that_explains_itself_is_quoted(rig: Rig) -> None:
    rig.act = lose(1)
    rig.workers[0].send(Failure("out of memory"))
    with pytest.raises(DllamaError, match=r"^worker 10\.0\.0\.1:1: out of memory \(during the prompt\)"):
        rig.program.run(STEP)


def test_after_an_error_every_step_says_the_same(rig: Rig) -> None:
    rig.act = lose(1)
    with pytest.raises(PeerLostError) as first:
        rig.program.run(STEP)
    rig.act = lambda: None
    with pytest.raises(PeerLostError) as second:
        rig.program.run(STEP)
    assert str(first.value) == str(second.value)


def test_a_batch_that_does_not_fit_is_told_to_nobody(rig: Rig) -> None:
    with pytest.raises(DllamaError, match="token 10 in a batch is outside"):
        rig.program.run(Batch.of([Row(10, 0, 0)]))
    assert not rig.workers[0].pending(0.01)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_takes_effect_after_the_step(rig: Rig) -> None:
    done: list[bool] = []
    rig.act = lambda: (press(), done.append(True))
    with pytest.raises(KeyboardInterrupt):
        rig.program.run(STEP)
    assert done == [True]
    rig.act = lambda: None
    rig.program.run(STEP)  # all nodes are at the same step, so it can go on
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait(rig: Rig) -> None:
    done: list[bool] = []
    rig.act = lambda: (press(), press(), done.append(True))
    with pytest.raises(KeyboardInterrupt):
        rig.program.run(STEP)
    assert done == []
    with pytest.raises(DllamaError, match="an earlier step failed"):
        rig.program.run(STEP)


def test_other_threads_run_steps_without_touching_signals(rig: Rig) -> None:
    rig.act = lambda: None
    with ThreadPoolExecutor(1) as pool:
        pool.submit(rig.program.run, STEP).result(timeout=5)
    assert threading.current_thread() is threading.main_thread()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
