"""The process: how it starts, how it ends, and what it says when it cannot start."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.api_server import REPOSITORY, ApiServerProcess


def refusal(*options: object) -> tuple[int, str]:
    """Exit status and last words of a server that cannot start."""
    command = [sys.executable, "-m", "dllama_gpu.cli.main", "api", *map(str, options)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()[-1]


def test_a_port_in_use_is_said_before_the_model_is_loaded(smollm2_gguf: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, words = refusal("--model", smollm2_gguf, "--port", port)
    assert status == 1
    assert str(port) in words
    assert "--port" in words


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--host", "no such host"], 1, "--host"),
        (["--api-key", "two words "], 2, "printable"),
        (["--api-key-file", "/nonexistent"], 1, "/nonexistent"),
        (["--model-name", ""], 2, "--model-name"),
        (["--cors-origin", "example.org"], 2, "--cors-origin"),
        (["--slots", "0"], 2, "--slots"),
        (["--chat-template", "nope"], 1, "nope"),
        (["--port", "70000"], 2, "--port"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(smollm2_gguf: Path, options: list[str], status: int, words: str):
    found, said = refusal("--model", smollm2_gguf, "--port", "0", *options)
    assert found == status, said
    assert said.startswith("dllama-gpu: error: ")
    assert words in said


def test_a_model_that_is_missing_is_said():
    status, said = refusal("--model", "/nonexistent.gguf", "--port", "0")
    assert status == 1
    assert "/nonexistent.gguf" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_peace_and_a_running_stream_with_an_error(smollm2_gguf: Path, number: signal.Signals):
    server = ApiServerProcess(
        smollm2_gguf, "--slots", "2", "--max-seq-len", "4096", "--drain-seconds", "0", "--log-format", "json"
    )
    body = {"messages": [{"role": "user", "content": "Count."}], "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.stop(number) == 0
        rest = [line for line in lines if line]
    assert "shutting_down" in rest[-2]
    assert rest[-1] == "data: [DONE]"
    logged = [json.loads(line) for line in server.log if line.startswith("{")]
    assert any(line.get("path") == "/v1/chat/completions" for line in logged)


def test_keys_from_a_file_are_wanted(smollm2_gguf: Path, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    server = ApiServerProcess(smollm2_gguf, "--slots", "1", "--api-key-file", str(keys))
    try:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer second"}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    finally:
        assert server.stop() == 0
