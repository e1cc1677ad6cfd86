from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from dllama_gpu.cli.arguments import UsageError
from dllama_gpu.cli.failures import explain, guarded
from dllama_gpu.errors import DllamaError


def failing(error: BaseException) -> Callable[[], int]:
    def program() -> int:
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DllamaError("the cup is empty; fill it"), 1, "name: error: the cup is empty; fill it\n"),
        (UsageError("no cup was given", "name pour"), 2, "name: error: no cup was given; see `name pour --help`\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (SystemExit(0), 0, ""),
        (OSError(errno.ENOSPC, "No space left on device", "/cup"), 1, "name: error: the disk is full at /cup; free"),
        (
            OSError(errno.EACCES, "Permission denied", "/cup"),
            1,
            "name: error: the system does not allow access to /cup",
        ),
        (
            OSError(errno.EIO, "Input/output error", "/cup"),
            1,
            "name: error: the system refused /cup: Input/output error",
        ),
        (MemoryError(), 1, "name: error: there is not enough memory; use a smaller model"),
        (KeyError("cup"), 1, "name: error: this should not have happened: KeyError: 'cup'; please report it"),
    ],
)
def test_every_failure_has_a_status_and_at_most_one_sentence(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, said: str
) -> None:
    assert guarded("name", failing(error)) == status
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert captured.err.count("\n") == (1 if said else 0)
    assert captured.out == ""


def test_ctrl_c_within_a_lock_ends_the_program_as_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        lock = threading.Lock()
        with lock:
            lock.release()  # as Condition.wait leaves it when a signal comes at a bad moment
            raise KeyboardInterrupt

    assert guarded("name", program) == 130
    assert capsys.readouterr().err == ""


def test_other_failures_while_ctrl_c_ends_the_program_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise DllamaError("the cup is empty")

    assert guarded("name", program) == 1
    assert capsys.readouterr().err == "name: error: the cup is empty\n"


def test_success_passes_the_programs_status_on() -> None:
    assert guarded("name", lambda: 0) == 0
    assert guarded("name", lambda: 7) == 7


def test_the_traceback_comes_only_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DLLAMA_DEBUG", raising=False)
    guarded("name", failing(DllamaError("the cup is empty")))
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("DLLAMA_DEBUG", "1")
    guarded("name", failing(DllamaError("the cup is empty")))
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("name: error: the cup is empty\n")


def test_an_unexpected_failure_is_told_in_one_line() -> None:
    assert explain(ValueError("first line\nsecond line")).count("\n") == 0


def test_what_a_file_says_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    guarded("name", failing(DllamaError("it is \x1b[2J\x9b1m\x07 and\nmore")))
    assert capsys.readouterr().err == "name: error: it is \\x1b[2J\\x9b1m\\x07 and more\n"


def test_a_disk_full_on_standard_output_names_no_file() -> None:
    assert explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))).startswith("the disk is full; free")
