from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from launcher.catalogue import ModelEntry
from launcher.environment import Environment

REPOSITORY = Path(launch.__file__).resolve().parent


def run_launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs launch.py with the standard library alone (-S: no site-packages)."""
    command = [sys.executable, "-S", str(REPOSITORY / "launch.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def command_for(*arguments: str) -> list[str]:
    """What is run, after the program's name."""
    entry = ModelEntry("tiny", "", (), "model.gguf", "Once upon a time", ("--seed", "1"))
    environment = Environment(Path("/project"), Path("/project/.venv"))
    options, extra = launch.parse_arguments(arguments)
    command = launch.run_command(environment, Path("/models/tiny"), entry, options, extra)
    assert command[0] == str(environment.program)
    return command[1:]


def test_listing_the_models_needs_only_the_standard_library() -> None:
    finished = run_launch("--list")
    assert finished.returncode == 0
    assert finished.stdout.startswith("smollm2_135m_instruct ")


def test_an_unknown_model_is_a_sentence_and_status_2() -> None:
    finished = run_launch("smolm2-135m-instruct")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("There is no model called 'smolm2-135m-instruct'. Did you mean smollm2_135m_")
    assert len(finished.stderr.splitlines()) == 1


def test_help_names_every_option() -> None:
    finished = run_launch("--help")
    assert finished.returncode == 0
    for option in ("--list", "--prompt", "--steps", "--nthreads", "--device", "--download-only", "--skip-run", "--yes"):
        assert option in finished.stdout


def test_the_run_takes_the_entrys_model_and_prompt() -> None:
    model = str(Path("/models/tiny/model.gguf"))
    assert command_for() == [
        "inference",
        "--model",
        model,
        "--prompt",
        "Once upon a time",
        "--steps",
        "128",
        "--seed",
        "1",
    ]


def test_the_run_takes_what_the_person_says() -> None:
    command = command_for("tiny", "--prompt", "", "--steps", "5", "--nthreads", "2", "--device", "cpu")
    assert command[3:] == ["--prompt", "", "--steps", "5", "--seed", "1", "--nthreads", "2", "--device", "cpu"]


def test_arguments_after_two_dashes_go_to_the_run_as_they_are() -> None:
    assert command_for("--steps", "5", "--", "--seed", "7", "--", "x")[-4:] == ["--seed", "7", "--", "x"]


def test_the_run_s_status_is_ours() -> None:
    assert launch.run([sys.executable, "-c", "raise SystemExit(7)"]) == 7


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals that end a process")
def test_a_run_ended_by_a_signal_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert launch.run([sys.executable, "-c", program]) == 128 + signal.SIGKILL
    assert "The run was ended by signal 9" in capfd.readouterr().err
