"""Root and workers as real processes on loopback."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Program, Row
from dllama_gpu.graph.graph import BufferType, Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.cluster import ROOT, Cluster
from dllama_gpu.net.measure import measure_speed
from dllama_gpu.net.mesh import PeerLostError
from tests.support.models import write_random_m
from tests.support.worker_process import WorkerProcess

KEY = "a key that is long enough"
PROMPT = [int(token) for token in np.random.default_rng(5).integers(0, 160, 24)]
N_TOKENS = 10
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    """SmolLM2's proportions: 9 heads, 3 KV heads."""
    path = tmp_path_factory.mktemp("model") / "model.m"
    write_random_m(
        path,
        dim=288,
        hidden_dim=320,
        n_layers=3,
        n_heads=9,
        n_kv_heads=3,
        head_dim=32,
        vocab_size=160,
        max_seq_len=64,
        weight_type=FloatType.F32,
        seed=2,
    )
    file = MFile(path)
    yield file
    file.close()


def graphs(source: ModelSource, ratio: Sequence[float]) -> list[Graph]:
    options = GraphOptions(max_rows=16, seq_len=40, buffer_type=BufferType.F32)
    return [build_graph(source.spec, source.tensors, options, shard) for shard in shard_by_ratio(source.spec, ratio)]


def rows(n_done: int, generated: Sequence[int]) -> Batch:
    """The next step: prefill in two chunks, then the last token."""
    if n_done < len(PROMPT):
        chunk = range(n_done, min(n_done + 16, len(PROMPT)))
        return Batch.of([Row(PROMPT[i], 0, i, i == len(PROMPT) - 1) for i in chunk])
    return Batch.of([Row(generated[-1], 0, n_done, True)])


def greedy(program: Program, n_tokens: int = N_TOKENS) -> list[int]:
    n_done, generated = 0, list[int]()
    while len(generated) < n_tokens:
        batch = rows(n_done, generated)
        program.run(batch)
        n_done += len(batch.tokens)
        if len(batch.logit_rows):
            generated.append(int(program.buffer("candidate_ids", 1)[0, 0]))
    return generated


def on_one_node(source: ModelSource) -> Program:
    return CpuDevice(1).compile(graphs(source, [1])[0], source)


def load(cluster: Cluster, source: ModelSource, ratio: Sequence[float], cache: Path | None = None) -> Program:
    return cluster.load(source, graphs(source, ratio), CpuDevice(1), wire=FloatType.F32, cache_folder=cache)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as things:
        yield things


def start(
    stack: ExitStack, n_workers: int, *, key: str | None = None, cache: Path | None = None
) -> list[WorkerProcess]:
    workers = []
    for number in range(n_workers):
        worker = WorkerProcess(key=key, cache=None if cache is None else cache / str(number))
        stack.callback(worker.stop)
        workers.append(worker)
    return workers


def connect(workers: Sequence[WorkerProcess], key: str | None = None, timeout: float = 10.0) -> Cluster:
    return Cluster.connect([worker.address for worker in workers], key=key and key.encode(), timeout=timeout)


@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
def test_two_and_three_workers_write_the_text_of_one_node(
    source: ModelSource, stack: ExitStack, key: str | None
) -> None:
    expected = greedy(on_one_node(source))
    workers = start(stack, 3, key=key)
    for ratio in ([1, 1], [1, 1, 1], [4, 1, 2, 2], [1, 0, 1]):
        with connect(workers[: len(ratio) - 1], key) as cluster:
            assert greedy(load(cluster, source, ratio)) == expected, ratio


def test_more_nodes_than_kv_heads_and_as_many_as_heads_write_the_text_of_one_node(
    source: ModelSource, stack: ExitStack
) -> None:
    expected = greedy(on_one_node(source))
    workers = start(stack, 8)
    for n_nodes in (5, 9):
        with connect(workers[: n_nodes - 1], timeout=30.0) as cluster:
            assert greedy(load(cluster, source, [1] * n_nodes)) == expected


def test_all_logits_are_those_of_one_node(source: ModelSource, stack: ExitStack) -> None:
    one = on_one_node(source)
    batch = Batch.of([Row(token, 0, i, True) for i, token in enumerate(PROMPT[:16])])
    one.run(batch)
    with connect(start(stack, 2)) as cluster:
        program = load(cluster, source, [1, 2, 1])
        program.run(batch)
        logits = program.buffer("logits", 16)
        assert np.abs(logits - one.buffer("logits", 16)).max() < 1e-3
        assert np.array_equal(program.buffer("logits", 5), logits[:5])
        program.run(rows(16, []))
        assert not np.array_equal(program.buffer("logits", 1), logits[:1])


def test_a_second_start_sends_hashes_only(source: ModelSource, stack: ExitStack, tmp_path: Path) -> None:
    workers = start(stack, 2, cache=tmp_path)
    first_text = second_text = None
    with connect(workers) as cluster:
        first_text = greedy(load(cluster, source, [1, 1, 1], tmp_path / "root"))
        first = cluster.load_summary
    with connect(workers) as cluster:
        second_text = greedy(load(cluster, source, [1, 1, 1], tmp_path / "root"))
        second = cluster.load_summary
        sent = [worker.channel.bytes_sent for worker in cluster.workers]
    assert first.sent_bytes == first.worker_bytes == second.worker_bytes
    assert second.sent_bytes == 0
    # Link measurement aside, which is the same for every model.
    assert max(sent) < 2 * (1 << 20) + second.worker_bytes / 50
    assert first_text == second_text


def test_an_interrupted_transfer_goes_on_where_it_stopped(
    source: ModelSource, stack: ExitStack, tmp_path: Path
) -> None:
    (worker,) = start(stack, 1, cache=tmp_path)

    told_of_worker = 0

    def break_off(done: int, total: int) -> None:
        nonlocal told_of_worker
        told_of_worker += threading.current_thread() is not threading.main_thread()
        if told_of_worker > 12:  # of about 25 slices
            raise DllamaError("broken off")

    with connect([worker]) as cluster, pytest.raises(DllamaError, match="broken off"):
        cluster.load(source, graphs(source, [1, 1]), CpuDevice(1), wire=FloatType.F32, progress=break_off)
    with connect([worker]) as cluster:
        assert greedy(load(cluster, source, [1, 1])) == greedy(on_one_node(source))
        assert 0 < cluster.load_summary.sent_bytes < cluster.load_summary.worker_bytes


def test_a_damaged_cache_is_mended(source: ModelSource, stack: ExitStack, tmp_path: Path) -> None:
    (worker,) = start(stack, 1, cache=tmp_path)
    with connect([worker]) as cluster:
        expected = greedy(load(cluster, source, [1, 1]))
    damaged = max((tmp_path / "0" / "slices").glob("*/*"), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with connect([worker]) as cluster:
        assert greedy(load(cluster, source, [1, 1])) == expected
        assert cluster.load_summary.sent_bytes == len(data)


def test_a_killed_worker_is_named_and_the_others_are_free_again(source: ModelSource, stack: ExitStack) -> None:
    workers = start(stack, 3)
    with connect(workers, timeout=5.0) as cluster:
        program = load(cluster, source, [1, 1, 1, 1])
        greedy(program, 3)
        workers[1].kill()
        with pytest.raises(PeerLostError) as caught:
            greedy(program, 3)
        sentence = str(caught.value)
        assert sentence.startswith(f"worker {workers[1].address} left during token 4 (")
        assert sentence.endswith("; restart it, or run again without it")
        assert caught.value.rank == 2
        with pytest.raises(PeerLostError):
            program.run(rows(0, []))
    left = [workers[0], workers[2]]
    with connect(left) as cluster:
        assert greedy(load(cluster, source, [1, 1, 1])) == greedy(on_one_node(source))


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process for a while")
def test_a_worker_that_falls_silent_is_named_within_the_deadline(source: ModelSource, stack: ExitStack) -> None:
    workers = start(stack, 2)
    with connect(workers, timeout=1.0) as cluster:
        program = load(cluster, source, [1, 1, 1])
        greedy(program, 2)
        workers[0].process.send_signal(signal.SIGSTOP)  # takes effect a moment later
        try:
            with pytest.raises(PeerLostError, match=rf"worker {workers[0].address} left during token [34] \("):
                greedy(program, 2)
        finally:
            workers[0].process.send_signal(signal.SIGCONT)


ROOT_PROGRAM = """
import sys
from tests.cluster.test_cluster import *
source = MFile(Path(sys.argv[1]))
cluster = Cluster.connect(sys.argv[2:])
program = load(cluster, source, [1] * (len(sys.argv) - 1))
greedy(program, 2)
print("running", flush=True)
while True:
    greedy(program, 8)
"""


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_killed_root_leaves_the_workers_listening(source: ModelSource, stack: ExitStack, how: str) -> None:
    workers = start(stack, 2)
    command = [sys.executable, "-c", ROOT_PROGRAM, str(source.path), *(worker.address for worker in workers)]
    root = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert root.stdout is not None
    assert root.stdout.readline() == "running\n"
    getattr(root, how)()
    root.wait()
    root.stdout.close()
    for worker in workers:
        worker.await_log("session ended")
    with connect(workers) as cluster:
        assert greedy(load(cluster, source, [1, 1, 1])) == greedy(on_one_node(source))


def test_a_root_in_the_middle_of_a_session_keeps_others_out(source: ModelSource, stack: ExitStack) -> None:
    workers = start(stack, 1)
    with connect(workers) as cluster:
        program = load(cluster, source, [1, 1])
        with pytest.raises(DllamaError, match=rf"worker {workers[0].address}: busy: it works for the root at"):
            connect(workers)
        assert greedy(program) == greedy(on_one_node(source))


def test_every_worker_that_cannot_be_had_is_named(stack: ExitStack) -> None:
    (worker,) = start(stack, 1, key=KEY)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DllamaError) as caught:
            Cluster.connect([worker.address, nobody], key=b"another key of some length")
    assert f"wrong key: worker {worker.address}" in str(caught.value)
    assert f"no connection to {nobody}" in str(caught.value)
    with connect([worker], KEY) as cluster:
        assert cluster.workers[0].report.device.startswith("cpu")


def test_a_share_that_does_not_fit_is_refused_before_it_is_sent(source: ModelSource, stack: ExitStack) -> None:
    worker = WorkerProcess(memory=1 << 20)
    stack.callback(worker.stop)
    with connect([worker]) as cluster:
        assert cluster.workers[0].report.memory == 1 << 20
        with pytest.raises(DllamaError, match=rf"worker {worker.address}: out of memory: .* 1 MiB may be used"):
            load(cluster, source, [1, 1])
        assert cluster.load_summary.sent_bytes == 0


def test_workers_can_be_left_out(source: ModelSource, stack: ExitStack) -> None:
    workers = start(stack, 3)
    with connect(workers) as cluster:
        cluster.keep([3, 1])
        assert [str(worker.address) for worker in cluster.workers] == [workers[2].address, workers[0].address]
        workers[1].await_log("the root is done")
        assert greedy(load(cluster, source, [1, 1, 1])) == greedy(on_one_node(source))


def test_nodes_and_the_ways_between_them_are_measured(source: ModelSource, stack: ExitStack) -> None:
    workers = start(stack, 2, key=KEY)
    addresses = [worker.address for worker in workers]
    with Cluster.connect(addresses, key=KEY.encode(), measure=[FloatType.Q40]) as cluster:
        profiles = cluster.profiles(measure_speed(CpuDevice(1), FloatType.Q40), 1 << 30, FloatType.Q40)
        assert [profile.name for profile in profiles] == [ROOT, *addresses]
        for first, second in itertools.combinations([ROOT, *addresses], 2):
            assert cluster.link(first, second) == cluster.link(second, first)
            assert 0 < cluster.link(first, second).latency_seconds < 1
        assert greedy(load(cluster, source, [1, 1, 1])) == greedy(on_one_node(source))


def test_a_worker_that_another_cannot_reach_is_named(source: ModelSource, stack: ExitStack) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        workers = [WorkerProcess(), WorkerProcess(advertise=nobody)]
        for worker in workers:
            stack.callback(worker.stop)
        sentence = f"^worker {workers[0].address}: no connection to {nobody}: nothing listens there"
        with connect(workers) as cluster, pytest.raises(DllamaError, match=sentence):
            load(cluster, source, [1, 1, 1])


def test_a_worker_that_another_cannot_reach_is_left_out_where_that_is_allowed(
    source: ModelSource, stack: ExitStack
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        workers = [WorkerProcess(), WorkerProcess(advertise=nobody), WorkerProcess()]
        for worker in workers:
            stack.callback(worker.stop)
        addresses = [worker.address for worker in workers]
        sentence = (
            f"^worker {addresses[1]} cannot take part: worker {addresses[0]} cannot reach worker {addresses[1]}: "
            f"no connection to {nobody}: nothing listens there"
        )
        with pytest.raises(DllamaError, match=sentence):
            Cluster.connect(addresses, measure=[FloatType.Q40])
        told: list[str] = []
        with Cluster.connect(
            addresses, measure=[FloatType.Q40], missing=lambda error: told.append(str(error))
        ) as cluster:
            assert len(told) == 1
            assert re.match(sentence, told[0])
            assert [str(worker.address) for worker in cluster.workers] == [addresses[0], addresses[2]]
            assert 0 < cluster.link(addresses[0], addresses[2]).latency_seconds < 1
            workers[1].await_log("session ended")
            assert greedy(load(cluster, source, [1, 1, 1])) == greedy(on_one_node(source))


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_workers_are_reached_by_ipv6_and_by_name(source: ModelSource, stack: ExitStack) -> None:
    workers = [WorkerProcess(host=host) for host in ("::1", "localhost", "127.0.0.1")]
    for worker in workers:
        stack.callback(worker.stop)
    with connect(workers) as cluster:
        assert greedy(load(cluster, source, [1, 1, 1, 1])) == greedy(on_one_node(source))


def test_every_node_says_what_its_steps_cost(source: ModelSource, stack: ExitStack) -> None:
    with connect(start(stack, 2)) as cluster:
        program = cluster.load(source, graphs(source, [1, 1, 1]), CpuDevice(1), wire=FloatType.F32)
        greedy(program, 5)
        statistics = program.statistics()
    for phases in ([node.prefill for node in statistics], [node.decode for node in statistics]):
        for phase in phases:
            assert 0 < phase.exchange_seconds < phase.step_seconds
            assert 0 <= phase.waiting_seconds <= phase.exchange_seconds
        # What is sent is received.
        assert sum(phase.bytes_sent for phase in phases) == sum(phase.bytes_received for phase in phases) > 0
    assert [(node.prefill.n_steps, node.prefill.n_rows) for node in statistics] == [(2, len(PROMPT))] * 3
    assert [(node.decode.n_steps, node.decode.n_rows) for node in statistics] == [(4, 4)] * 3


def test_a_trace_puts_all_nodes_on_one_clock(source: ModelSource, stack: ExitStack) -> None:
    with connect(start(stack, 2)) as cluster:
        program = cluster.load(source, graphs(source, [1, 1, 1]), CpuDevice(1), wire=FloatType.F32)
        program.start_trace()
        greedy(program, 5)
        lanes = program.trace()
        statistics = program.statistics()
    assert [lane.name for lane in lanes] == ["root", *(str(worker.address) for worker in cluster.workers)]
    for lane, node in zip(lanes, statistics, strict=True):
        assert lane.records["step"][-1] == 5
        assert lane.n_untold == 0
        assert lane.records["bytes_sent"].sum() == node.prefill.bytes_sent + node.decode.bytes_sent
    # No node can end an all-reduce before another one has begun it, give or take what the clocks are read wrongly.
    slack = sum(lane.clock_error for lane in lanes)
    both_ways = [(lane.records["bytes_sent"] > 0) & (lane.records["bytes_received"] > 0) for lane in lanes[1:]]
    reduces = np.stack([lane.records[chosen] for lane, chosen in zip(lanes[1:], both_ways, strict=True)])
    assert np.all(reduces["end"].min(axis=0) > reduces["exchange"].max(axis=0) - slack - 1e-3)


def test_a_bad_batch_is_refused_and_the_cluster_goes_on(source: ModelSource, stack: ExitStack) -> None:
    with connect(start(stack, 1)) as cluster:
        program = load(cluster, source, [1, 1])
        with pytest.raises(DllamaError, match="token 160 in a batch is outside"):
            program.run(Batch.of([Row(160, 0, 0)]))
        assert greedy(program) == greedy(on_one_node(source))


def test_a_worker_stops_when_it_is_told_even_in_a_session(source: ModelSource) -> None:
    worker = WorkerProcess()
    with connect([worker]) as cluster:
        load(cluster, source, [1, 1])
        assert worker.stop() == 0
