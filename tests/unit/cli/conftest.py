from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dllama_gpu.cli.main import main
from tests.support.tiny import TinyModel, write_tiny_gguf, write_tiny_model


@dataclass(frozen=True)
class Outcome:
    """What a run of the program gave."""

    status: int
    out: str
    err: str

    def value(self, label: str) -> str:
        """What stands behind a label on standard error."""
        lines = [line for line in self.err.splitlines() if line.startswith(f"{label} ")]
        assert len(lines) == 1, f"{label!r} stands on {len(lines)} lines of:\n{self.err}"
        return lines[0].removeprefix(label).strip()


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dllama-gpu` with these arguments inside this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


class Terminal:
    """Stands for standard output or error on a terminal; keeps what was written in `text`."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Puts standard output and standard error on one terminal; to be called by the test itself."""

    def switch() -> Terminal:
        shared = Terminal()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(sys, "stdout", shared)
        monkeypatch.setattr(sys, "stderr", shared)
        return shared

    return switch
