"""The examples run and print what their first lines promise."""

from __future__ import annotations

import configparser
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from dllama_gpu.cli import worker
from dllama_gpu.cli.arguments import Parser

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generate(smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("generate").main(str(smollm2_gguf), "The capital of France is", max_tokens=8)
    printed = capsys.readouterr().out
    assert printed.startswith("The capital of France is")
    assert "Paris" in printed


def test_next_token(smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("next_token").main(str(smollm2_gguf), "The capital of France is")
    lines = capsys.readouterr().out.splitlines()
    probabilities = [float(line.split("%")[0]) for line in lines]
    assert len(lines) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 100.1
    assert "Paris" in "".join(lines)


def test_the_service_of_systemd_starts_a_worker_with_options_that_exist() -> None:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.read(EXAMPLES / "dllama-gpu-worker.service", encoding="utf-8")
    program, command, *options = parser["Service"]["ExecStart"].split()
    assert program.endswith("/.venv/bin/dllama-gpu")
    assert command == "worker"
    known = Parser("worker")
    worker.add_arguments(known)
    assert known.parse_args(options).key_file == Path("/etc/dllama-gpu/key")
