"""A worker is killed while clients read their answers over HTTP: they see a pause and the right text."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from dllama_gpu.model.float_type import FloatType
from dllama_gpu.tokenizer.t_file import write_t_file
from tests.support.api_server import ApiServerProcess
from tests.support.models import write_random_m
from tests.support.tiny import tiny_tokenizer
from tests.support.worker_command import WorkerCommand

N_TOKENS = 300
PROMPTS = [[7 * number + place for place in range(5 + number)] for number in range(6)]
OPTIONS = ("--nthreads", "1", "--buffer-float-type", "f32", "--slots", "4", "--speculative", "off", "--device", "cpu")


def write_model(folder: Path) -> tuple[Path, Path]:
    """F32 weights: the nodes' division of the work changes nothing that decides a token."""
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


def body(prompt: list[int]) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0, "ignore_eos": True}


def streamed(url: str, prompt: list[int], begun: threading.Event) -> str:
    text = ""
    with httpx.stream("POST", f"{url}/v1/completions", json={**body(prompt), "stream": True}, timeout=120) as response:
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                text += chunk["choices"][0]["text"]
                if len(text) > 20:
                    begun.set()
    raise AssertionError("the stream was cut off")


def test_clients_see_a_pause_and_the_right_text(tmp_path: Path):
    model, tokenizer = write_model(tmp_path)
    alone = ApiServerProcess(model, "--tokenizer", str(tokenizer), *OPTIONS)
    try:
        expected = [
            httpx.post(f"{alone.url}/v1/completions", json=body(prompt), timeout=120).json()["choices"][0]["text"]
            for prompt in PROMPTS
        ]
    finally:
        assert alone.stop() == 0
    workers = [WorkerCommand(tmp_path / str(number)) for number in range(2)]
    try:
        addresses = [worker.address for worker in workers]
        server = ApiServerProcess(model, "--tokenizer", str(tokenizer), *OPTIONS, "--no-cache", "--workers", *addresses)
        try:
            begun = threading.Event()
            with ThreadPoolExecutor(len(PROMPTS)) as clients:
                answers = [clients.submit(streamed, server.url, prompt, begun) for prompt in PROMPTS]
                assert begun.wait(60)
                workers[0].kill()
                healthy = []
                while not all(answer.done() for answer in answers):
                    healthy.append(httpx.get(f"{server.url}/health", timeout=30).status_code)
                    time.sleep(0.05)
                assert [answer.result() for answer in answers] == expected
            assert set(healthy) == {200}
            state = httpx.get(f"{server.url}/api/cluster").json()
            assert [node["state"] for node in state["nodes"]] == ["ok", "ok", "lost"]
            assert state["requests"] == {"finished": len(PROMPTS), "failed": 0}
            assert "dllama_gpu_recoveries_total 1.0" in httpx.get(f"{server.url}/metrics").text
        finally:
            assert server.stop() == 0, server.log
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.stop()
