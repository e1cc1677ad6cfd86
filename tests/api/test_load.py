"""Many clients at once, with cancellations, slow readers and garbage among them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving_load import await_idle, make_prompts, run_load
from tests.support.api_server import ApiServerProcess

N_CLIENTS = 24
SECONDS = 15.0


@pytest.fixture
def busy_server(smollm2_gguf: Path) -> Iterator[ApiServerProcess]:
    """A server with fewer places than there are clients, so that some are sent away."""
    options = ("--slots", "4", "--max-seq-len", "512", "--max-queue", "10", "--log-level", "warning")
    started = ApiServerProcess(smollm2_gguf, *options)
    try:
        yield started
    finally:
        assert started.stop() == 0, started.log


def test_every_text_is_right_and_nothing_leaks(busy_server: ApiServerProcess):
    prompts = make_prompts(busy_server.url)
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    asyncio.run(run_load(busy_server.url, prompts, n_clients=N_CLIENTS, seconds=2, seed=1))
    asyncio.run(await_idle(busy_server.url))
    on_linux = sys.platform == "linux"
    memory, files = (busy_server.memory(), busy_server.open_files()) if on_linux else (0, 0)

    report = asyncio.run(run_load(busy_server.url, prompts, n_clients=N_CLIENTS, seconds=SECONDS))
    state = asyncio.run(await_idle(busy_server.url))

    assert not report.wrong, report.lines()
    assert set(report.statuses) <= {200, 400, 429}
    assert report.statuses[200] > 20
    assert set(report.kinds) == {"whole", "stream", "slow", "leaves a stream", "leaves", "garbage", "wrong field"}
    assert state["slots"]["busy"] == state["queue"]["waiting"] == state["requests"]["failed"] == 0
    if on_linux:
        assert busy_server.memory() < memory + (32 << 20)
        assert busy_server.open_files() <= files + 5
    log = [line for line in busy_server.log if " warning " in line or " error " in line or "Traceback" in line]
    assert not log
