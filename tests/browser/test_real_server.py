"""The page as the real server sends it, with a real model behind it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.test_chat import answers, ask, finished
from tests.support.api_server import ApiServerProcess
from tests.support.worker_command import WorkerCommand

KEY = "secret"


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WorkerCommand]]:
    cache = tmp_path_factory.mktemp("cache")
    started = [WorkerCommand(cache / str(number)) for number in range(2)]
    yield started
    for worker in started:
        if worker.process.poll() is None:
            worker.stop()


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path, workers: list[WorkerCommand]) -> Iterator[ApiServerProcess]:
    """Three nodes that share the model 2 : 1 : 1, one slot, a key."""
    options = ["--slots", "1", "--max-seq-len", "1024", "--api-key", KEY, "--nthreads", "1", "--ratio", "2,1,1"]
    addresses = [worker.address for worker in workers]
    started = ApiServerProcess(smollm2_gguf, *options, "--worker-timeout", "5", "--workers", *addresses)
    yield started
    started.stop()


@pytest.fixture
def page(browser: Browser, server: ApiServerProcess) -> Iterator[Page]:
    """The page with the key and greedy answers."""
    mistakes: list[str] = []
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    page = context.new_page()
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.goto(server.url)
    page.fill("#key-input", KEY)
    page.get_by_role("button", name="Go on").click()
    page.evaluate("localStorage.setItem('dllama.settings', '{\"temperature\": 0, \"max_tokens\": 300}')")
    expect(page.locator("#model-name")).to_contain_text("SmolLM2", ignore_case=True)
    yield page
    context.close()
    assert mistakes == []


def cluster_state(server: ApiServerProcess) -> dict[str, Any]:
    request = urllib.request.Request(f"{server.url}/api/cluster", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        state: dict[str, Any] = json.load(response)
    return state


def test_a_conversation_with_the_model(page: Page) -> None:
    ask(page, "What is gravity? Answer in two sentences.")
    finished(page)
    assert "Gravity is a fundamental" in answers(page)[0]
    expect(page.locator(".note")).to_contain_text("tokens/s")
    ask(page, "Who found it?")
    finished(page, 2)
    assert len(answers(page)[1]) > 10


def test_a_stopped_answer_frees_its_slot(page: Page, server: ApiServerProcess) -> None:
    ask(page, "Write a very long story about a king and his three sons.")
    expect(page.locator(".message.assistant .body")).to_contain_text(" ")
    page.click("#stop")
    expect(page.locator(".note")).to_have_text("stopped")
    deadline = time.monotonic() + 20
    while cluster_state(server)["slots"]["busy"]:
        assert time.monotonic() < deadline, "the slot is still busy"
        time.sleep(0.05)


def test_the_picture_of_the_cluster_and_what_it_shows_of_a_lost_worker(
    page: Page, server: ApiServerProcess, workers: list[WorkerCommand]
) -> None:
    ask(page, "What is gravity? Answer in two sentences.")
    finished(page)
    page.click("#to-cluster")
    expect(page.locator(".node h2")).to_have_count(3)
    for number, worker in enumerate(workers, 1):
        expect(page.locator(".node h2").nth(number)).to_have_text(worker.address)
        expect(page.locator(".node").nth(number)).to_contain_text("A token takes")
        expect(page.locator(".node").nth(number)).to_contain_text("Network per token")
    expect(page.locator(".pill.slow")).to_have_count(1)
    expect(page.locator("#cluster-state")).to_have_text("ready")
    page.go_back()
    workers[1].kill()
    ask(page, "What is 2+2?")
    finished(page, 2)
    page.click("#to-cluster")
    expect(page.locator("#cluster-state")).to_have_text("ready")
    expect(page.locator(".node.is-lost h2")).to_have_text(workers[1].address)
