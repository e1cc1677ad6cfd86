"""What runs out: the disk, the memory, the user's patience. Commands as a user starts them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.worker_command import REPOSITORY, WorkerCommand
from tests.support.worker_process import wait_until

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are set in Linux's way")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as things:
        yield things


def root(model: Path, worker: WorkerCommand, *options: str, ratio: str = "1,1") -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "dllama_gpu.cli.main", "inference", "--model", str(model), "--device", "cpu"]
    command += ["--prompt", "The capital of France is", "--temperature", "0", "--nthreads", "1", "--no-cache"]
    command += ["--ratio", ratio, "--workers", worker.address, *options]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def text_of(model: Path, worker: WorkerCommand) -> tuple[str, str]:
    process = root(model, worker, "--steps", "4")
    text, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return text, said


@LINUX
def test_a_full_disk_costs_the_cache_and_nothing_else(smollm2_gguf: Path, tmp_path: Path, stack: ExitStack) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be made here: {mounted.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", str(folder)], check=True)
    worker = WorkerCommand(folder, "--device", "cpu")
    stack.callback(worker.stop)
    for _ in range(2):  # what fits is kept for the next time
        text, said = text_of(smollm2_gguf, worker)
        assert "Paris" in text
        worker.await_log("cannot be used (the disk is full); this run keeps its weights in memory")
    sent = re.search(r"^sent +([0-9.]+) MiB of the ([0-9.]+) MiB", said, re.MULTILINE)
    assert sent, said
    assert 0 < float(sent[1]) < float(sent[2])


@LINUX
def test_a_worker_without_memory_says_so_and_serves_the_next_root(
    smollm2_gguf: Path, tmp_path: Path, stack: ExitStack
) -> None:
    with_little = ("sh", "-c", 'ulimit -v 500000; exec "$@"', "sh", sys.executable)
    # It believes to have plenty, as a machine does whose memory another program takes meanwhile.
    worker = WorkerCommand(tmp_path, "--device", "cpu", "--max-memory", "100G", python=with_little)
    stack.callback(worker.stop)
    process = root(smollm2_gguf, worker, "--steps", "8000", "--ignore-eos", ratio="1,9")  # KV cache of 176 MiB
    stack.callback(process.kill)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(rf"error: worker {re.escape(worker.address)}: no memory for the KV cache \(", said), said
    worker.await_log("session ended: no memory")
    assert "Paris" in text_of(smollm2_gguf, worker)[0]


@LINUX
def test_a_killed_root_gives_the_worker_its_memory_back(smollm2_gguf: Path, tmp_path: Path, stack: ExitStack) -> None:
    worker = WorkerCommand(tmp_path, "--device", "cpu")
    stack.callback(worker.stop)

    def resident_bytes() -> int:
        status = Path(f"/proc/{worker.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found
        return 1024 * int(found[1])

    text_of(smollm2_gguf, worker)
    worker.await_log("session ended")
    before = resident_bytes()
    process = root(smollm2_gguf, worker, "--steps", "8000", "--ignore-eos", ratio="1,4")
    assert process.stdout is not None
    process.stdout.read(20)
    during = resident_bytes()
    process.kill()
    process.communicate()
    wait_until(lambda: sum("session ended" in line for line in worker.log) == 2, "the end of the session")
    assert during - before > 40 << 20
    assert resident_bytes() - before < 20 << 20
    assert "Paris" in text_of(smollm2_gguf, worker)[0]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
@pytest.mark.parametrize("stage", ["cluster ", "worker ", "share ", "sampling ", "text"])
def test_ctrl_c_ends_a_root_in_every_stage_and_frees_the_worker(
    smollm2_gguf: Path, tmp_path: Path, stack: ExitStack, stage: str
) -> None:
    worker = WorkerCommand(tmp_path, "--device", "cpu")
    stack.callback(worker.stop)
    process = root(smollm2_gguf, worker, "--steps", "8000", "--ignore-eos")
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stderr is not None
    if stage == "text":
        process.stdout.read(20)
    else:
        assert any(line.startswith(stage) for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "Paris" in text_of(smollm2_gguf, worker)[0]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_ends_a_worker_in_a_session_and_its_root_names_it(
    smollm2_gguf: Path, tmp_path: Path, stack: ExitStack
) -> None:
    worker = WorkerCommand(tmp_path, "--device", "cpu")
    process = root(smollm2_gguf, worker, "--steps", "8000", "--ignore-eos")
    stack.callback(process.kill)
    assert process.stdout is not None
    process.stdout.read(20)
    assert worker.stop() == 0
    assert not any("Traceback" in line for line in worker.log)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.search(rf"error: worker {re.escape(worker.address)} left during token \d+ \(", said), said
