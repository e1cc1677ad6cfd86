"""Nodes that share nothing but a network: each in a network namespace of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.namespaces import Network, Slow, UnavailableError, check_available
from tests.support.tiny import write_tiny_gguf
from tests.support.worker_command import REPOSITORY, WorkerCommand

PROMPT = "The capital of France is"


@contextmanager
def network(n_machines: int, slow: Slow | None = None) -> Iterator[Network]:
    try:
        check_available(slow=slow is not None)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    with Network(n_machines, slow) as one:
        yield one


def start_workers(stack: ExitStack, machines: Network, n_workers: int, caches: Path) -> list[WorkerCommand]:
    workers = []
    for number in range(1, n_workers + 1):
        python = machines.command(number, sys.executable)
        worker = WorkerCommand(caches / str(number), host=machines.address(number), python=python)
        stack.callback(worker.stop)
        workers.append(worker)
    return workers


def root(machines: Network, model: Path, workers: list[WorkerCommand], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "dllama_gpu.cli.main", "inference", "--model", str(model)]
    command += ["--prompt", PROMPT, "--temperature", "0", "--nthreads", "1", "--buffer-float-type", "f32"]
    command += ["--ignore-eos", *(["--workers", *(worker.address for worker in workers)] if workers else []), *options]
    return subprocess.Popen(
        machines.command(0, *command), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    text, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return text, said


def test_machines_on_a_slow_network_write_the_text_of_one(tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    write_tiny_gguf(model)
    with network(3, Slow(seconds=150e-6, bits_per_second=1e9)) as machines, ExitStack() as stack:
        expected, _ = finished(root(machines, model, [], "--steps", "16"))
        workers = start_workers(stack, machines, 2, tmp_path)
        # The planner would leave out machines behind such a network: this model is far too small for it.
        text, said = finished(root(machines, model, workers, "--steps", "16", "--ratio", "1,1,1"))
        assert text == expected
        nodes = re.findall(r"^node +(\S+): .* waits ([0-9.]+) ms, exchanges ([0-9.]+) ms", said, re.MULTILINE)
        assert [name for name, _, _ in nodes] == ["root", *(worker.address for worker in workers)]
        # Four all-reduces and what goes with them, each at least one way through the network.
        assert all(float(waits) + float(exchanges) > 4 * 0.15 for _, waits, exchanges in nodes)


def test_the_planner_measures_a_slow_network_and_warns_of_it(tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    write_tiny_gguf(model)
    with network(2, Slow(seconds=2e-3, bits_per_second=1e9)) as machines, ExitStack() as stack:
        workers = start_workers(stack, machines, 1, tmp_path)
        text, said = finished(root(machines, model, workers, "--steps", "4"))
        assert len(text) > 0
        assert re.search(rf"^advice .*{re.escape(workers[0].address)}", said, re.MULTILINE), said


def test_a_cut_cable_is_named_and_the_worker_listens_again(smollm2_gguf: Path, tmp_path: Path) -> None:
    with network(3) as machines, ExitStack() as stack:
        workers = start_workers(stack, machines, 2, tmp_path)
        options = ("--ratio", "5,2,2", "--worker-timeout", "2")
        process = root(machines, smollm2_gguf, workers, "--steps", "4000", "--max-seq-len", "4096", *options)
        stack.callback(process.kill)
        assert process.stdout is not None
        process.stdout.read(20)
        machines.cut(2)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        lost = re.search(rf"worker {re.escape(workers[1].address)} left during token (\d+) \(.+\)", said)
        assert lost, said
        assert int(lost[1]) > 1
        workers[0].await_log("session ended")
        workers[1].await_log("session ended")
        machines.mend(2)
        text, _ = finished(root(machines, smollm2_gguf, workers, "--steps", "4", *options))
        assert "Paris" in text
