"""Workers are killed while clients read their answers over HTTP: they see a pause and the right text."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from dllama_gpu.model.float_type import FloatType
from dllama_gpu.tokenizer.t_file import write_t_file
from tests.support.api_server import ApiServerProcess
from tests.support.models import write_random_m
from tests.support.tiny import tiny_tokenizer
from tests.support.worker_command import Workers
from tests.support.worker_process import wait_until

N_TOKENS = 300
N_KILLS = int(os.environ.get("DLLAMA_GPU_TEST_KILLS", "2"))
PATIENCE = 120.0
PROMPTS = [[7 * number + place for place in range(5 + number)] for number in range(6)]
OPTIONS = ("--nthreads", "1", "--buffer-float-type", "f32", "--slots", "4", "--speculative", "off", "--device", "cpu")


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
        max_seq_len=512,
        weight_type=FloatType.F32,
        seed=2,
    )
    write_t_file(folder / "model.t", tiny_tokenizer())
    return folder / "model.m", folder / "model.t"


@pytest.fixture(scope="module")
def expected(files: tuple[Path, Path]) -> list[str]:
    """The text of each prompt, asked of a server of one node, one after the other."""
    alone = ApiServerProcess(files[0], "--tokenizer", str(files[1]), *OPTIONS)
    try:
        return [whole(alone.url, prompt) for prompt in PROMPTS]
    finally:
        assert alone.stop() == 0


@contextmanager
def serving(files: tuple[Path, Path], folder: Path) -> Iterator[tuple[Workers, str]]:
    """A server with two workers, and its address."""
    workers = Workers(folder, 2)
    try:
        options = ("--tokenizer", str(files[1]), *OPTIONS, "--no-cache", "--workers", *workers.addresses)
        server = ApiServerProcess(files[0], *options)
        try:
            yield workers, server.url
        finally:
            assert server.stop() == 0, server.log
    finally:
        workers.stop()


def body(prompt: list[int]) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0, "ignore_eos": True}


def whole(url: str, prompt: list[int]) -> str:
    answer = httpx.post(f"{url}/v1/completions", json=body(prompt), timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def streamed(url: str, prompt: list[int], begun: threading.Event | None = None) -> str:
    text = ""
    fields = {**body(prompt), "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=fields, timeout=PATIENCE) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                text += chunk["choices"][0]["text"]
                if begun is not None and len(text) > 20:
                    begun.set()
    raise AssertionError("the stream was cut off")


class Clients:
    """Ask all the time, one half of them for streams, and compare what they get with `expected`."""

    def __init__(self, url: str, expected: list[str]) -> None:
        self._url = url
        self._expected = expected
        self._stopping = threading.Event()
        self.n_right = 0
        self._asks = threading.Event()
        self._asks.set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(len(expected))
        self._ends = [self._pool.submit(self._ask, number) for number in range(len(expected))]

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Meanwhile nothing new is asked for."""
        self._asks.clear()
        yield
        self._asks.set()

    def stop(self) -> int:
        """Lets the last answers come, and returns how many there were. Fails where one was wrong or none came."""
        self._stopping.set()
        self._asks.set()
        for end in self._ends:
            end.result(timeout=2 * PATIENCE)
        self._pool.shutdown()
        return self.n_right

    def check(self) -> None:
        """Fails at once where a client has."""
        for end in self._ends:
            if end.done():
                end.result()

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        while not self._stopping.is_set():
            place = chance.randrange(len(self._expected))
            ask = streamed if number % 2 else whole
            assert ask(self._url, PROMPTS[place]) == self._expected[place]
            with self._lock:
                self.n_right += 1
            self._asks.wait()


def lost(url: str) -> list[str]:
    nodes = httpx.get(f"{url}/api/cluster", timeout=30).json()["nodes"]
    return [node["name"] for node in nodes if node["state"] == "lost"]


def test_clients_see_a_pause_and_the_right_text(files: tuple[Path, Path], expected: list[str], tmp_path: Path):
    with serving(files, tmp_path) as (workers, url):
        begun = threading.Event()
        with ThreadPoolExecutor(len(PROMPTS)) as clients:
            answers = [clients.submit(streamed, url, prompt, begun) for prompt in PROMPTS]
            assert begun.wait(60)
            workers.kill(0)
            healthy = []
            while not all(answer.done() for answer in answers):
                healthy.append(httpx.get(f"{url}/health", timeout=30).status_code)
                time.sleep(0.05)
            assert [answer.result() for answer in answers] == expected
        assert set(healthy) == {200}
        state = httpx.get(f"{url}/api/cluster").json()
        assert [node["state"] for node in state["nodes"]] == ["ok", "ok", "lost"]
        assert state["requests"] == {"finished": len(PROMPTS), "failed": 0}
        assert "dllama_gpu_recoveries_total 1.0" in httpx.get(f"{url}/metrics").text


def test_clients_that_ask_all_the_time_while_workers_are_killed_and_come_back(
    files: tuple[Path, Path], expected: list[str], tmp_path: Path
):
    chance = random.Random(N_KILLS)
    with serving(files, tmp_path) as (workers, url):
        clients = Clients(url, expected)
        try:
            for _ in range(N_KILLS):
                if lost(url):  # a busy machine started it too slowly; under load it would stay out
                    with clients.resting():
                        wait_until(lambda: not lost(url), "all workers to be used again")
                time.sleep(chance.uniform(0, 1.5))  # also while it recovers from the one before
                number = chance.randrange(2)
                workers.kill(number)
                time.sleep(chance.choice((0.0, 1.0)))
                workers.restart(number)
                clients.check()
        finally:
            n_right = clients.stop()
        assert n_right >= len(PROMPTS)
        state = httpx.get(f"{url}/api/cluster").json()
        assert state["requests"] == {"finished": n_right, "failed": 0}
        assert state["slots"]["busy"] == state["queue"]["waiting"] == 0
        recoveries = re.search(r"^dllama_gpu_recoveries_total (\S+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        assert recoveries is not None
        assert float(recoveries[1]) >= 1
