"""The examples run and print what their first lines promise."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

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
