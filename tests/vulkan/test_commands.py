"""Commands with --device vulkan, alone and in clusters, as a user types them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dllama_gpu.cli.main import main
from tests.support.tiny import write_tiny_gguf
from tests.support.worker_command import WorkerCommand


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Starts a worker for each device named and gives their addresses."""
    started: list[WorkerCommand] = []

    def start(*devices: str) -> list[str]:
        new = [WorkerCommand(tmp_path / f"cache{n}", "--device", device) for n, device in enumerate(devices)]
        started.extend(new)
        return [worker.address for worker in new]

    yield start
    for worker in started:
        assert worker.stop() == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """F32 weights, so that the text must be the same."""
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def text_of(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The text that `inference` writes with these options; what it says beside is kept in `text_of.said`."""

    def call(*options: str) -> str:
        capsys.readouterr()
        arguments = ["inference", "--model", str(model), "--prompt", "the end", "--steps", "10", "--temperature", "0"]
        arguments += ["--nthreads", "1", "--ignore-eos", "--buffer-float-type", "f32"]
        status = main([*arguments, *options])
        shown = capsys.readouterr()
        assert status == 0, shown.err
        call.said = shown.err  # type: ignore[attr-defined]
        return shown.out

    return call


def test_the_text_is_that_of_the_cpu(text_of: Callable[..., str], device_index: int) -> None:
    wanted, gpu = text_of("--device", "cpu"), f"vulkan:{device_index}"
    assert text_of("--device", gpu) == wanted
    assert re.search(rf"^device +{gpu} \(", text_of.said, re.MULTILINE)
    assert text_of("--device", gpu, "--gpu-layers", "1") == wanted
    assert len(re.findall(r"^share +(?:cpu|vulkan)", text_of.said, re.MULTILINE)) == 2


def test_the_self_test_is_made_once_for_a_driver(text_of: Callable[..., str], device_index: int) -> None:
    text_of("--device", f"vulkan:{device_index}")  # perhaps the first
    text_of("--device", f"vulkan:{device_index}")
    assert "self-test" not in text_of.said


def test_clusters_of_gpus_and_processors_write_the_text_of_one_node(
    text_of: Callable[..., str], device_index: int, workers: Callable[..., list[str]]
) -> None:
    wanted, gpu = text_of("--device", "cpu"), f"vulkan:{device_index}"
    on_gpu, on_cpu = workers(gpu, "cpu")
    for root, addresses in (("cpu", [on_gpu]), (gpu, [on_cpu]), (gpu, [on_gpu, on_cpu])):
        ratio = ",".join("1" for _ in range(1 + len(addresses)))
        assert text_of("--device", root, "--workers", *addresses, "--ratio", ratio) == wanted, (root, addresses)
    assert text_of("--device", "cpu", "--workers", on_gpu) == wanted, "shares by the planner, the GPU being measured"
    assert re.search(r"^expected ", text_of.said, re.MULTILINE)


def test_plan_measures_a_gpu(
    model: Path, device_index: int, workers: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (address,) = workers(f"vulkan:{device_index}")
    capsys.readouterr()
    options = ["--device", f"vulkan:{device_index}", "--nthreads", "1"]
    assert main(["plan", "--model", str(model), "--workers", address, *options]) == 0
    assert address in capsys.readouterr().out


def test_devices_shows_the_gpu_with_its_test(device_index: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    (shown,) = (block for block in blocks if re.match(rf"device +vulkan:{device_index}\n", block))
    for label in ("name", "driver", "type", "memory", "tier", "features", "limits"):
        assert re.search(rf"^{label} +\S", shown, re.MULTILINE), label
    assert re.search(r"^self-test +passed with the \w+ shaders \([0-9.]+ s\)$", shown, re.MULTILINE)
    assert re.search(r"^speed +matmuls of Q40 read [0-9.]+ GB/s", shown, re.MULTILINE)


def test_wrong_devices_are_sentences(model: Path, device_index: int, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["inference", "--model", str(model), "--prompt", "x"]
    for options, status, sentence in (
        (["--device", "vulkan:99"], 1, "there is no GPU vulkan:99; this machine has vulkan:0 ("),
        (["--device", "vulkan:-1"], 2, "'vulkan:-1' is no device"),
        (
            ["--device", f"vulkan:{device_index}", "--gpu-layers", "9"],
            1,
            "--gpu-layers is 9, but the model has 2 layers",
        ),
        (["--device", "cpu", "--gpu-layers", "1"], 2, "--gpu-layers is for a GPU"),
        (["--device", f"vulkan:{device_index}", "--gpu-layers", "1", "--workers", "a:1"], 2, "within one machine"),
        (["--device", "cpu", "--max-memory", "1G"], 2, "--max-memory has a meaning with --workers only"),
    ):
        assert main([*common, *options]) == status
        shown = capsys.readouterr().err
        assert sentence in shown
        assert "Traceback" not in shown


def test_a_tier_can_be_asked_for(
    text_of: Callable[..., str], model: Path, device_index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = text_of("--device", "cpu")
    monkeypatch.setenv("DLLAMA_GPU_VULKAN_TIER", "base")
    assert text_of("--device", f"vulkan:{device_index}") == wanted
    assert ", base)" in text_of.said
    monkeypatch.setenv("DLLAMA_GPU_VULKAN_TIER", "turbo")
    assert main(["inference", "--model", str(model), "--prompt", "x", "--device", f"vulkan:{device_index}"]) == 1


def test_a_trace_of_a_gpu(text_of: Callable[..., str], device_index: int, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    text_of("--device", f"vulkan:{device_index}", "--trace", str(path))
    assert json.loads(path.read_text())["traceEvents"]
