"""Workers that are killed while an engine serves requests with them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from dllama_gpu.cli import serving_programs
from dllama_gpu.cli.arguments import Parser, add_device_arguments, add_model_arguments
from dllama_gpu.cli.cluster_options import add_cluster_arguments
from dllama_gpu.cli.engine_options import add_engine_arguments
from dllama_gpu.cli.loading import open_chosen_model
from dllama_gpu.cli.serving import Serving, start_engine
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.events import Event, FailedEvent, FinishedEvent, TokenEvent
from dllama_gpu.engine.generation import Generation, GenerationRequest
from dllama_gpu.engine.loading import OpenModel, build_graph
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.graph.graph import BufferType
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.tokenizer.t_file import write_t_file
from tests.support.models import write_random_m
from tests.support.tiny import tiny_tokenizer
from tests.support.worker_command import Workers
from tests.support.worker_process import wait_until

GREEDY = SamplingParams(temperature=0)
N_TOKENS = 200
SEQ_LEN = 256
PATIENCE = 120.0
N_KILLS = int(os.environ.get("DLLAMA_GPU_TEST_KILLS", "3"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """F32 weights: the nodes' division of the work changes nothing that decides a token."""
    folder = tmp_path_factory.mktemp("model")
    write_random_m(
        folder / "model.m",
        dim=288,
        hidden_dim=320,
        n_layers=3,
        n_heads=9,
        n_kv_heads=3,
        head_dim=32,
        vocab_size=288,
        max_seq_len=SEQ_LEN,
        weight_type=FloatType.F32,
        seed=2,
    )
    write_t_file(folder / "model.t", tiny_tokenizer())
    return folder / "model.m", folder / "model.t"


@pytest.fixture(autouse=True)
def _waits_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests starts a worker as slowly as it likes."""
    monkeypatch.setattr(serving_programs, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(serving_programs, "LOOK_SECONDS", 1.0)


@pytest.fixture
def waits_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_programs, "GRACE_SECONDS", 0.5)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as things:
        yield things


def serve(stack: ExitStack, files: tuple[Path, Path], workers: Workers, *more: str) -> tuple[OpenModel, Serving]:
    parser = Parser("test")
    for add in (add_model_arguments, add_device_arguments, add_engine_arguments):
        add(parser)
    add_cluster_arguments(parser, trace=False)
    arguments = ["--model", str(files[0]), "--tokenizer", str(files[1]), "--nthreads", "1", "--no-cache"]
    arguments += ["--buffer-float-type", "f32", "--slots", "4", "--workers", *workers.addresses, *more]
    options = parser.parse_args(arguments)
    model = stack.enter_context(open_chosen_model(options))
    return model, stack.enter_context(start_engine(model, options, "test"))


def prompts(n: int) -> list[tuple[int, ...]]:
    random_numbers = np.random.default_rng(4)
    return [tuple(int(token) for token in random_numbers.integers(0, 256, 5 + 3 * number)) for number in range(n)]


def alone(model: OpenModel, prompt: tuple[int, ...]) -> list[int]:
    options = GraphOptions(max_rows=64, seq_len=SEQ_LEN, buffer_type=BufferType.F32)
    program = CpuDevice(1).compile(build_graph(model.source, options), model.source)
    wanted = GenerationRequest(prompt, N_TOKENS, GREEDY, n_known_ids=model.tokenizer.vocab_size)
    return list(Generation(program, wanted).tokens())


class Client:
    """Asks for one text and keeps what it gets."""

    def __init__(self, serving: Serving, prompt: tuple[int, ...]) -> None:
        self.tokens: list[int] = []
        self.last: Event | None = None
        self.over = threading.Event()
        serving.engine.submit(CompletionRequest(prompt, N_TOKENS, GREEDY), self._told)

    def _told(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            self.tokens.append(event.token)
        elif isinstance(event, FinishedEvent | FailedEvent):
            self.last = event
            self.over.set()

    def await_tokens(self, n: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self.tokens) < n and not self.over.is_set():
            assert time.monotonic() < deadline, "no token for a long time"
            time.sleep(0.002)

    def text(self) -> list[int]:
        assert self.over.wait(PATIENCE), "the request never ended"
        assert isinstance(self.last, FinishedEvent), self.last
        return self.tokens


def test_requests_wait_for_a_worker_that_was_killed_and_comes_back(
    files: tuple[Path, Path], tmp_path: Path, stack: ExitStack
) -> None:
    workers = Workers(tmp_path, 2)
    stack.callback(workers.stop)
    model, serving = serve(stack, files, workers)
    expected = [alone(model, prompt) for prompt in prompts(6)]
    clients = [Client(serving, prompt) for prompt in prompts(6)]
    clients[0].await_tokens(30)
    workers.kill(0)
    workers.restart(0)
    assert [client.text() for client in clients] == expected
    assert serving.engine.statistics().n_recoveries == 1
    assert not any(node.is_lost for node in serving.nodes())


def test_requests_go_on_without_a_worker_that_stays_away_and_later_ones_with_it(
    files: tuple[Path, Path], tmp_path: Path, stack: ExitStack, waits_little: None
) -> None:
    workers = Workers(tmp_path, 2)
    stack.callback(workers.stop)
    model, serving = serve(stack, files, workers)
    expected = [alone(model, prompt) for prompt in prompts(6)]
    clients = [Client(serving, prompt) for prompt in prompts(6)]
    clients[0].await_tokens(30)
    workers.kill(0)
    assert [client.text() for client in clients] == expected
    assert [node.name for node in serving.nodes() if node.is_lost] == [workers.addresses[0]]
    workers.restart(0)
    wait_until(lambda: not any(node.is_lost for node in serving.nodes()), "the worker to be used again")
    assert Client(serving, prompts(1)[0]).text() == expected[0]


def test_when_all_workers_are_gone_the_root_goes_on_alone(
    files: tuple[Path, Path], tmp_path: Path, stack: ExitStack, waits_little: None
) -> None:
    workers = Workers(tmp_path, 2)
    stack.callback(workers.stop)
    model, serving = serve(stack, files, workers)
    client = Client(serving, prompts(1)[0])
    client.await_tokens(20)
    for number in (0, 1):
        workers.kill(number)
    assert client.text() == alone(model, prompts(1)[0])
    assert [node.is_lost for node in serving.nodes()] == [False, True, True]


def test_workers_killed_again_and_again_under_load(files: tuple[Path, Path], tmp_path: Path, stack: ExitStack) -> None:
    workers = Workers(tmp_path, 2)
    stack.callback(workers.stop)
    model, serving = serve(stack, files, workers)
    expected = {prompt: alone(model, prompt) for prompt in prompts(6)}
    chance = random.Random(11)
    for _ in range(N_KILLS):
        clients = {prompt: Client(serving, prompt) for prompt in expected}
        first = next(iter(clients.values()))
        first.await_tokens(chance.randrange(N_TOKENS // 2))
        number = chance.randrange(2)
        workers.kill(number)
        workers.restart(number)
        for prompt, client in clients.items():
            assert client.text() == expected[prompt]
    statistics = serving.engine.statistics()
    assert statistics.n_failed == 0
    assert statistics.n_recoveries >= 1
