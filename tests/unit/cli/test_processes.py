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


_CUT_FILE = """
import os, sys
from pathlib import Path
from dllama_gpu.cli.failures import explain_lost_files
from dllama_gpu.formats.mapped_file import MappedFile
file = MappedFile(Path(sys.argv[1]))
explain_lost_files("dllama-gpu")
os.truncate(sys.argv[1], 0)
file.view(0, 1)[0]
"""


def test_a_file_that_is_cut_short_while_it_is_read_ends_the_program_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(10_000))
    done = subprocess.run([sys.executable, "-c", _CUT_FILE, str(path)], capture_output=True, timeout=WAIT_SECONDS)
    assert done.returncode == -signal.SIGBUS
    assert b"dllama-gpu: error: a file that was being read was cut short" in done.stderr
