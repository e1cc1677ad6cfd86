"""The program as a process of its own: signals, pipes and full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one process and SIGPIPE are POSIX's")

WAIT_SECONDS = 120


def start(model: Path, stdout: int) -> subprocess.Popen[bytes]:
    """A run that writes text for minutes unless it is stopped."""
    options = ["--prompt", "Once upon a time", "--steps", "8000", "--ignore-eos", "--temperature", "0"]
    return subprocess.Popen(
        [sys.executable, "-m", "dllama_gpu.cli.main", "inference", "--model", str(model), *options],
        stdout=stdout,
        stderr=subprocess.PIPE,
        # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    """Standard error once the process has ended by itself."""
    try:
        _, err = process.communicate(timeout=WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return err.decode()


def test_ctrl_c_ends_a_run_with_its_statistics_and_no_traceback(smollm2_gguf: Path) -> None:
    process = start(smollm2_gguf, subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    err = finish(process)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped by Ctrl-C" in err


def test_a_reader_that_goes_away_ends_a_run_quietly(smollm2_gguf: Path) -> None:
    process = start(smollm2_gguf, subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.stdout.close()
    process.stdout = None
    err = finish(process)
    assert process.returncode == 141
    assert "Traceback" not in err
    assert "error" not in err
    assert "Exception ignored" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_a_sentence(smollm2_gguf: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        process = start(smollm2_gguf, full)
    finally:
        os.close(full)
    err = finish(process)
    assert process.returncode == 1
    assert err.endswith("dllama-gpu: error: the disk is full; free some space and run this again\n")
