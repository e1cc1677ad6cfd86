"""perplexity, devices, convert, --version and --help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

import dllama_gpu
from dllama_gpu.cpu import _native
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.loading import build_graph, open_with_tokenizer
from dllama_gpu.engine.perplexity import measure_perplexity
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.m_file import MFile
from dllama_gpu.tokenizer.t_file import read_t_file
from dllama_gpu.vulkan.errors import NoGpuError
from tests.support.tiny import TinyModel
from tests.unit.cli.conftest import Run

COMMANDS = ["inference", "chat", "perplexity", "devices", "worker", "plan", "download", "convert", "inspect"]


def facts(text: str) -> dict[str, str]:
    """Labels and values of lines such as `speed       12 tokens/s`."""
    return {label.strip(): value for label, value in (line.split("  ", 1) for line in text.splitlines())}


def test_perplexity_is_what_the_engine_measures(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    text = "All happy families are alike; each unhappy family <|im_end|> is unhappy in its own way."
    (tmp_path / "text.txt").write_text(text)
    done = run(
        "perplexity",
        "--model",
        tiny.model,
        "--tokenizer",
        tiny.tokenizer,
        "--file",
        tmp_path / "text.txt",
        "--window",
        20,
    )
    with open_with_tokenizer(tiny.model, tiny.tokenizer) as model:
        ids = list(text.encode())  # the tag is text like any other
        program = CpuDevice().compile(build_graph(model.source, GraphOptions(seq_len=20)), model.source)
        expected = measure_perplexity(program, ids, 20)
    assert done.status == 0
    found = facts(done.out)
    assert found["nll mean"].strip() == f"{expected.nll_mean:.6f}"
    assert found["perplexity"].strip() == f"{expected.perplexity:.4f}"
    assert found["tokens"].strip() == f"{4 * 19} predicted, of {len(ids)} in the text (4 windows)"
    assert found["speed"].endswith(" tokens/s")


def test_perplexity_that_is_interrupted_prints_what_it_has(
    run: Run, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("x" * 100)
    runs = iter([None, None, KeyboardInterrupt()])
    original = CpuDevice.compile

    def compile_interrupted(*arguments: object) -> object:
        program = original(*arguments)  # type: ignore[arg-type]
        run_step = program.run

        def step(batch: object) -> None:
            error = next(runs)
            if error is not None:
                raise error
            run_step(batch)  # type: ignore[arg-type]

        program.run = step  # type: ignore[method-assign]
        return program

    monkeypatch.setattr(CpuDevice, "compile", compile_interrupted)
    done = run(
        "perplexity",
        "--model",
        tiny.model,
        "--tokenizer",
        tiny.tokenizer,
        "--file",
        tmp_path / "text.txt",
        "--window",
        20,
    )
    assert done.status == 130
    assert "38 predicted" in done.out


def test_devices_tells_the_kernels_of_this_processor(run: Run) -> None:
    done = run("devices", "--no-test")
    assert done.status == 0
    found = facts(done.out.split("\n\n")[0])
    assert found["kernels"].strip().startswith(_native.kernel_names()[0])
    for name in _native.kernel_names():
        assert name in found["kernels"]
    for feature in _native.cpu_features():
        assert feature in found["features"]
    assert found["name"].strip()
    assert "usable" in found["threads"]
    assert "iB in all" in found["memory"]


def test_the_kernels_shown_are_those_that_the_environment_chooses(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_GPU_CPU_KERNELS", "plain")
    shown = run("devices", "--no-test").out.split("\n\n")[0]
    assert facts(shown)["kernels"].strip().startswith("plain")
    monkeypatch.setenv("DLLAMA_GPU_CPU_KERNELS", "abacus")
    done = run("devices", "--no-test")
    assert done.status == 1
    assert "this processor has no 'abacus' kernels" in done.err


def test_a_machine_without_gpus_is_told_what_to_install(
    run: Run, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> NoReturn:
        raise NoGpuError("Vulkan cannot be used: libvulkan is not installed; install the driver")

    monkeypatch.setattr("dllama_gpu.vulkan.discovery.find_gpus", none)
    monkeypatch.setattr("dllama_gpu.cli.device_choice.find_gpus", none)
    shown = run("devices", "--no-test").out.split("\n\n")[1]
    assert shown.startswith("GPU ")
    assert "none: Vulkan cannot be used: libvulkan is not installed; install the driver" in shown
    options = ["--model", tiny.model, "--tokenizer", tiny.tokenizer, "--prompt", "x", "--steps", 2]
    done = run("inference", *options, "--device", "auto")
    assert done.status == 0
    assert "libvulkan is not installed" in done.value("no GPU")
    assert done.value("device").startswith("cpu")
    for device in ("vulkan", "vulkan:1"):
        done = run("inference", *options, "--device", device)
        assert done.status == 1
        assert done.err.strip().endswith("libvulkan is not installed; install the driver")


@pytest.mark.parametrize("weights", ["q40", "q80", "f16", "f32"])
def test_a_converted_model_runs(run: Run, tiny_gguf: Path, tmp_path: Path, weights: str) -> None:
    model, tokenizer = tmp_path / "out.m", tmp_path / "out.t"
    done = run("convert", "gguf", tiny_gguf, model, tokenizer, "--weights", weights)
    assert done.status == 0
    assert f"matrices in {weights}" in done.out
    assert done.out.count("read back and compared") == 2
    assert MFile(model).spec.weight_type.value == weights
    assert len(read_t_file(tokenizer).tokens) == 259
    common = ["--prompt", "the third", "--steps", 20, "--temperature", 0, "--buffer-float-type", "f32"]
    converted = run("inference", "--model", model, "--tokenizer", tokenizer, *common)
    assert converted.status == 0
    assert converted.value("prefill").startswith("7 tokens")
    if weights == "f32":
        assert converted.out == run("inference", "--model", tiny_gguf, *common).out


def test_the_method_decides_the_q40_scales(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    for method in ("absmax", "search"):
        out = tmp_path / method
        assert run("convert", "gguf", tiny_gguf, f"{out}.m", f"{out}.t", "--method", method).status == 0
    absmax, search = (MFile(tmp_path / f"{method}.m").read("layers.0.q") for method in ("absmax", "search"))
    assert not np.array_equal(absmax, search)


def test_a_conversion_that_reads_back_otherwise_is_a_failure(
    run: Run, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(*arguments: object) -> None:
        data = bytearray((tmp_path / "out.m").read_bytes())
        data[-400:] = bytes(400)
        (tmp_path / "out.m").write_bytes(data)

    from dllama_gpu.model import verify

    real = verify.verify_m
    monkeypatch.setattr(verify, "verify_m", lambda *arguments: (damage(), real(*arguments))[1])
    done = run("convert", "gguf", tiny_gguf, tmp_path / "out.m", tmp_path / "out.t")
    assert done.status == 1
    assert "of the tensor head reads back with an error of" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(run: Run, option: str) -> None:
    done = run(option)
    assert (done.status, done.out) == (0, f"dllama-gpu {dllama_gpu.__version__}\n")


def test_help_lists_the_commands_and_is_shown_for_an_empty_command_line(run: Run) -> None:
    done = run("--help")
    assert done.status == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.out
    empty = run()
    assert (empty.status, empty.out, empty.err) == (2, "", done.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.status == 0
    assert done.out.startswith(f"usage: dllama-gpu {command}")


def test_help_is_also_a_word(run: Run) -> None:
    assert run("help") == run("--help")
    assert run("help", "inference") == run("inference", "--help")
    unknown = run("help", "inferense")
    assert unknown.status == 2
    assert "did you mean inference?" in unknown.err


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)])
def test_answers_about_itself_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom dllama_gpu.cli.main import main\n"
        f"assert main({arguments!r}) == 0\n"
        "sys.exit(','.join({'numpy', 'tiktoken', 'rich', 'gguf', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "\n"  # what sys.exit prints: no module's name
