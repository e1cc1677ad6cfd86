from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from dllama_gpu.cli.arguments import Parser, add_device_arguments
from dllama_gpu.errors import DllamaError
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
    return command_of(entry, [Path("/models/tiny/model.gguf")], *arguments)


def command_of(entry: ModelEntry, files: list[Path], *arguments: str) -> list[str]:
    environment = Environment(Path("/project"), Path("/project/.venv"))
    options, extra = launch.parse_arguments(arguments)
    command = launch.run_command(environment, files, entry, options, extra)
    assert command[0] == str(environment.program)
    return command[1:]


def test_listing_the_models_needs_only_the_standard_library() -> None:
    finished = run_launch("--list")
    assert finished.returncode == 0
    lines = finished.stdout.splitlines()
    assert lines[1].split() == ["name", "size", *("N", "=", "1", "N", "=", "2", "N", "=", "4", "N", "=", "8")]
    assert lines[2].startswith("smollm2_135m_instruct ")
    listed = {line.split()[0]: line.split()[1:7] for line in lines[2:-2]}
    assert len(listed) == 12
    assert listed["llama3_1_8b_instruct_q40"][:2] == ["6.3", "GB"]
    needs = [float(number) for number in listed["llama3_1_8b_instruct_q40"][2:]]
    assert needs == sorted(needs, reverse=True)
    assert 4.2 < needs[0] < 5.2


def test_a_model_counts_as_downloaded_when_its_tokenizer_is_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def downloaded() -> list[str]:
        launch.print_catalogue()
        return [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(", downloaded")]

    monkeypatch.setattr(launch, "_MODELS", tmp_path)
    folder = tmp_path / "qwen3_0.6b_q40"
    folder.mkdir()
    assert downloaded() == []
    (folder / "dllama_model_qwen3_0.6b_q40.m").touch()
    assert downloaded() == []
    (folder / "dllama_tokenizer_qwen3_0.6b_q40.t").touch()
    assert downloaded() == ["qwen3_0.6b_q40"]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGPIPE is POSIX's")
def test_a_reader_that_goes_away_is_no_failure_to_tell() -> None:
    command = [sys.executable, str(Path(launch.__file__)), "--list"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_unknown_model_is_a_sentence_and_status_2() -> None:
    finished = run_launch("smolm2-135m-instruct")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("There is no model called 'smolm2-135m-instruct'. Did you mean smollm2_135m_")
    assert len(finished.stderr.splitlines()) == 1


def test_help_names_every_option() -> None:
    finished = run_launch("--help")
    assert finished.returncode == 0
    for option in (
        "--list",
        "--prompt",
        "--steps",
        "--nthreads",
        "--device",
        "--download-only",
        "--skip-run",
        "--yes",
        "--workers",
        "--api",
    ):
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
    assert "The run was ended by signal 9, probably by the system for want of memory" in capfd.readouterr().err
    assert launch.run([sys.executable, "-c", program.replace("SIGKILL", "SIGBUS")]) == 128 + signal.SIGBUS
    assert f"by signal {signal.SIGBUS.value}: the model file was cut short" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "0"], "argument --steps: '0' is not a whole number from 1 to 2147483647"),
        (["--steps", "many"], "argument --steps: 'many' is not a whole number"),
        (["--nthreads", "100000"], "argument --nthreads: '100000' is not a whole number from 1 to"),
        (["--device", "tpu"], "argument --device: 'tpu' is no device; it must be auto, cpu, vulkan or vulkan:N"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_made(options: list[str], said: str) -> None:
    finished = run_launch(*options)
    assert finished.returncode == 2
    assert said in finished.stderr


@pytest.mark.parametrize("device", ["auto", "cpu", "vulkan", "vulkan:1", "tpu", "vulkan:x", ""])
def test_the_devices_are_those_of_the_program(device: str) -> None:
    program = Parser(prog="program")
    add_device_arguments(program)
    accepted = []
    for parse in (launch._parser().parse_args, program.parse_args):
        try:
            parse(["--device", device])
            accepted.append(True)
        except (SystemExit, DllamaError):
            accepted.append(False)
    assert accepted[0] == accepted[1]


def test_models_of_the_hub_chat_on_a_terminal_and_answer_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, folder = launch.choose_model("qwen3-8b-q40")
    assert (entry.download, folder) == ("qwen3_8b_q40", None)
    files = [Path("/m/a.m"), Path("/m/a.t")]
    given = ["--model", str(files[0]), "--tokenizer", str(files[1])]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert command_of(entry, files) == ["chat", *given]
    assert command_of(entry, files, "x", "--prompt", "Hi")[:1] == ["inference"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    answer = ["--prompt", "Why is the sky blue?", "--chat", "--steps", "128"]
    assert command_of(entry, files) == ["inference", *given, *answer]


def test_workers_device_and_api_are_passed_on() -> None:
    entry, _ = launch.choose_model("hf:org/repo:x.gguf")
    assert entry.download == "hf:org/repo:x.gguf"
    arguments = [
        "x",
        "--api",
        "--device",
        "vulkan:0",
        "--workers",
        "10.0.0.2:9999",
        "10.0.0.3:9999",
        "--",
        "--port",
        "1",
    ]
    assert command_of(entry, [Path("/m/x.gguf")], *arguments) == [
        *("api", "--model", str(Path("/m/x.gguf")), "--device", "vulkan:0"),
        *("--workers", "10.0.0.2:9999", "10.0.0.3:9999", "--port", "1"),
    ]


def test_what_the_download_says_is_run(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "dllama-gpu"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nprint('/m/a.m')\nprint('/m/a.t')\nsys.exit(len(sys.argv) - 5)\n"
    )
    program.chmod(0o755)
    environment = Environment(tmp_path, tmp_path)
    if sys.platform != "win32":
        assert launch.download(environment, "x", None) == (0, [Path("/m/a.m"), Path("/m/a.t")])
        assert launch.download(environment, "x", "http://mirror")[0] == 2


def test_a_file_is_run_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "my.gguf"
    path.touch()
    entry, folder = launch.choose_model(str(path))
    assert folder == tmp_path
    options, extra = launch.parse_arguments([str(path), "--prompt", "Hello", "--", "--tokenizer", "my.t"])
    command = launch.run_command(Environment(Path("/p"), Path("/p/.venv")), [path], entry, options, extra)
    assert command[1:] == [
        *("inference", "--model", str(path), "--prompt", "Hello", "--steps", "128", "--tokenizer", "my.t")
    ]


def test_a_name_of_the_catalogue_is_no_file() -> None:
    entry, folder = launch.choose_model("SmolLM2-135M-Instruct")
    assert (entry.name, folder) == ("smollm2_135m_instruct", None)


def test_a_file_needs_no_download(tmp_path: Path) -> None:
    (tmp_path / "my.gguf").touch()
    finished = run_launch(str(tmp_path / "my.gguf"), "--download-only")
    assert finished.returncode == 2
    assert "is a file that is here already" in finished.stderr
