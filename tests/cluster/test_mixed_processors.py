"""An x86-64 root with an ARM64 worker, as with a Raspberry Pi: qemu runs the worker's Python and our kernels in it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from dllama_gpu.cli.main import main
from tests.support.arm_machine import ArmMachine, DownloadError, make_arm_machine
from tests.support.kernel_check import IS_ARM64, UnavailableError, arm_required
from tests.support.tiny import write_tiny_gguf, write_tiny_model
from tests.support.worker_command import WorkerCommand

pytestmark = [
    pytest.mark.skipif(IS_ARM64, reason="this machine's own processor is an ARM64"),
    pytest.mark.timeout(600),  # the first run downloads and compiles
]


@pytest.fixture(scope="module")
def arm_machine() -> ArmMachine:
    try:
        return make_arm_machine()
    except UnavailableError as reason:
        if arm_required() and not isinstance(reason, DownloadError):
            pytest.fail(f"DLLAMA_GPU_REQUIRE_ARM_TESTS=1, but {reason}")
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def arm_worker(arm_machine: ArmMachine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerCommand]:
    cache = tmp_path_factory.mktemp("cache")
    worker = WorkerCommand(cache, python=arm_machine.python, folder=arm_machine.folder)
    assert any("i8mm" in line or "neon" in line for line in worker.log), worker.log
    yield worker
    worker.stop()


def text(capsys: pytest.CaptureFixture[str], model: Sequence[str], workers: Sequence[WorkerCommand]) -> str:
    arguments = ["inference", *model, "--prompt", "the end", "--steps", "24", "--temperature", "0", "--ignore-eos"]
    arguments += ["--nthreads", "1"]
    if workers:
        arguments += ["--ratio", "2,1", "--worker-timeout", "30", "--workers", *(each.address for each in workers)]
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_an_arm_worker_and_this_root_write_the_text_of_one_node(
    arm_worker: WorkerCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path)  # f32 weights: the text must not depend on how the sums are shared out
    model = ["--model", str(path), "--buffer-float-type", "f32"]
    assert text(capsys, model, [arm_worker]) == text(capsys, model, [])


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="kernels with the same bits")
def test_an_arm_worker_computes_the_bits_of_this_machine(
    arm_worker: WorkerCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_tiny_model(tmp_path)  # quantized weights, activations and exchanges
    model = ["--model", str(files.model), "--tokenizer", str(files.tokenizer)]
    with ExitStack() as stack:
        own = WorkerCommand(tmp_path / "cache")
        stack.callback(own.stop)
        assert text(capsys, model, [arm_worker]) == text(capsys, model, [own])
