"""Each mistake on the command line gets one sentence and exit status 2; each mistake in a file one and 1."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.tiny import TinyModel
from tests.unit.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inferense"], "there is no command 'inferense' (did you mean inference?)"),
        (["node"], "there is no command 'node' (the commands are inference, chat,"),
        (["--model", "x"], "unknown option '--model'"),
        (["inference"], "the following arguments are required: --model"),
        (["inference", "--model", "x"], "one of the arguments --prompt --prompt-file is required"),
        (["inference", "--model", "x", "--prompt"], "--prompt: expected one argument (one that begins with -"),
        (["inference", "--model", "x", "--prompt", "-v"], "--prompt: expected one argument (one that begins with -"),
        (["perplexity", "--model", "x"], "the following arguments are required: --file"),
        (["plan", "--model", "x", "--workers", ","], "--workers: expected at least one address"),
        (
            ["plan", "--model", "x", "--worker-timeout", "3601"],
            "3601 seconds are out of range, it must be at most 3600",
        ),
        (["devices", "all"], "unknown argument 'all'"),
        (["convert", "safetensors", "a", "b", "c"], "format: invalid choice: 'safetensors'"),
        (["convert", "gguf", "a.gguf"], "one or two files to write are wanted, OUT.m and OUT.t, not 0"),
        (
            ["convert", "hf", "a", "b.m", "c.t", "-o", "d"],
            "one or two files to write are wanted, OUT.m and OUT.t, not 3",
        ),
        (["convert", "tokenizer", "a", "b.t", "c.t"], "one file to write is wanted, OUT.t, not 2"),
        (["convert", "gguf", "a.gguf", "b", "./b"], "model and tokenizer cannot both be written to b"),
    ],
)
def test_a_command_line_that_cannot_be_read(run: Run, arguments: list[str], sentence: str) -> None:
    done = run(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert done.err.startswith("dllama-gpu: error: ")
    assert sentence in done.err
    assert "--help`" in done.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--temprature", "1"], "unknown option '--temprature' (did you mean --temperature?)"),
        (["--temp", "1"], "unknown option '--temp'"),
        (["--steps", "0"], "--steps: 0 is out of range, it must be at least 1"),
        (["--steps", "-5"], "--steps: -5 is out of range"),
        (["--steps", "many"], "--steps: 'many' is not a whole number"),
        (["--steps", "99999999999"], "--steps: 99999999999 is out of range, it must be at most 2147483647"),
        (["--nthreads", "0"], "--nthreads: 0 is out of range"),
        (["--max-seq-len", "0"], "--max-seq-len: 0 is out of range"),
        (["--prefill-chunk", "9000"], "--prefill-chunk: 9000 is out of range, it must be at most 8192"),
        (["--temperature", "-1"], "temperature is -1.0, but it must be 0 (always the likeliest token) to 100"),
        (["--temperature", "nan"], "temperature is nan, but it must be"),
        (["--temperature", "hot"], "--temperature: 'hot' is not a number"),
        (["--topp", "0"], "top_p is 0.0, but it must be above 0 and at most 1"),
        (["--topp", "1.5"], "top_p is 1.5, but it must be"),
        (["--topk", "-1"], "--topk/--top-k: -1 is out of range"),
        (["--minp", "2"], "min_p is 2.0, but it must be"),
        (["--repetition-penalty", "0"], "repetition_penalty is 0.0, but it must be"),
        (["--presence-penalty", "inf"], "presence_penalty is inf, but it must be"),
        (["--seed", "-3"], "--seed: -3 is out of range"),
        (["--buffer-float-type", "q40"], "--buffer-float-type: invalid choice: 'q40'"),
        (["--kv-cache-type", "q40"], "--kv-cache-type: invalid choice: 'q40'"),
        (["--device", "tpu"], "--device: 'tpu' is no device; it must be auto, cpu, vulkan or vulkan:N"),
        (["--system", "x"], "--system and --chat-template say how to ask with --chat; add it"),
        (["--chat-template", "llama3"], "--system and --chat-template say how to ask with --chat; add it"),
        (["--prompt-file", "x"], "not allowed with argument --prompt"),
    ],
)
def test_an_option_that_is_wrong(run: Run, options: list[str], sentence: str) -> None:
    done = run("inference", "--model", "unread.gguf", "--prompt", "x", *options)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert sentence in done.err
    assert "`dllama-gpu inference --help`" in done.err


def files(tiny: TinyModel) -> list[object]:
    return ["--model", tiny.model, "--tokenizer", tiny.tokenizer]


def refused(run: Run, *arguments: object, status: int = 1) -> str:
    """The sentence of a run that fails."""
    done = run(*arguments)
    assert done.status == status, done.err
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if line.startswith("dllama-gpu: error: ")]
    assert lines == done.err.splitlines()[-1:]
    return lines[0].removeprefix("dllama-gpu: error: ")


def test_a_model_that_is_not_there(run: Run, tmp_path: Path) -> None:
    sentence = refused(run, "inference", "--model", tmp_path / "none.gguf", "--prompt", "x")
    assert "none.gguf does not exist" in sentence


def test_a_folder_in_place_of_a_model(run: Run, tmp_path: Path) -> None:
    assert "is a folder" in refused(run, "inference", "--model", tmp_path, "--prompt", "x")


def test_a_text_in_place_of_a_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "readme").write_text("Read me first")
    assert "is no model file" in refused(run, "inference", "--model", tmp_path / "readme", "--prompt", "x")


def test_a_truncated_model(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "cut.m").write_bytes(tiny.model.read_bytes()[:-100])
    sentence = refused(run, "inference", "--model", tmp_path / "cut.m", "--tokenizer", tiny.tokenizer, "--prompt", "x")
    assert "100 bytes are missing" in sentence


def test_a_m_file_without_its_tokenizer(run: Run, tiny: TinyModel) -> None:
    assert "give its `.t` file to --tokenizer" in refused(run, "inference", "--model", tiny.model, "--prompt", "x")


def test_a_tokenizer_that_is_not_there(run: Run, tiny: TinyModel) -> None:
    sentence = refused(run, "inference", "--model", tiny.model, "--tokenizer", "none.t", "--prompt", "x")
    assert "none.t" in sentence


def test_more_threads_than_processors(run: Run, tiny: TinyModel) -> None:
    sentence = refused(run, "inference", *files(tiny), "--prompt", "x", "--nthreads", 100_000, status=2)
    assert "--nthreads must be from 1 to " in sentence


def test_an_empty_prompt_for_a_model_without_a_first_token(run: Run, tiny: TinyModel) -> None:
    assert "the prompt is empty" in refused(run, "inference", *files(tiny), "--prompt", "", status=2)


def test_an_empty_prompt_file_is_a_mistake_in_the_file(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    sentence = refused(run, "inference", *files(tiny), "--prompt-file", tmp_path / "empty.txt")
    assert "the prompt is empty" in sentence


def test_a_prompt_longer_than_the_context(run: Run, tiny: TinyModel) -> None:
    sentence = refused(run, "inference", *files(tiny), "--prompt", "x" * 65)
    assert sentence == "the prompt has 65 tokens, but the context holds 64; shorten it"


def test_an_unknown_chat_template(run: Run, tiny: TinyModel) -> None:
    options = ["--prompt", "x", "--chat", "--chat-template", "alpaca"]
    sentence = refused(run, "inference", "--model", "unread.gguf", *options, status=2)
    assert "there is no chat template 'alpaca'; choose one of llama2, llama3" in sentence


def test_a_prompt_file_that_is_not_utf8(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("Grüße".encode("latin-1"))
    sentence = refused(run, "inference", *files(tiny), "--prompt-file", path)
    assert sentence == f"{path} is not UTF-8 text: byte 2 is 0xfc; convert it to UTF-8"


def test_a_prompt_file_that_is_not_there_or_is_a_folder(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    assert "does not exist" in refused(run, "inference", *files(tiny), "--prompt-file", tmp_path / "none")
    assert "is a folder" in refused(run, "perplexity", *files(tiny), "--file", tmp_path)


def test_a_text_too_short_for_perplexity(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("x")
    sentence = refused(run, "perplexity", *files(tiny), "--file", tmp_path / "one.txt")
    assert "the text has 1 token, but at least 2 are needed" in sentence


def test_a_window_beyond_the_models_context(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 100)
    sentence = refused(run, "perplexity", *files(tiny), "--file", tmp_path / "long.txt", "--window", 80)
    assert "a window of 80 tokens does not fit the model's context of 64" in sentence


def test_a_conversion_of_what_is_no_gguf_file(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    sentence = refused(run, "convert", "gguf", tiny.model, tmp_path / "a.m", tmp_path / "a.t")
    assert str(tiny.model) in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_into_a_folder_that_is_not_there(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    sentence = refused(run, "convert", "gguf", tiny_gguf, tmp_path / "none" / "a.m", tmp_path / "a.t")
    assert f"there is no folder {tmp_path / 'none'}" in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_onto_its_own_input(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    before = tiny_gguf.read_bytes()
    for targets in ((tiny_gguf, tmp_path / "a.t"), (tmp_path / "a.m", tiny_gguf)):
        sentence = refused(run, "convert", "gguf", tiny_gguf, *targets, "--force", status=2)
        assert "is the model to convert itself" in sentence
    assert tiny_gguf.read_bytes() == before


def test_a_conversion_onto_a_folder(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "a.t").mkdir()
    sentence = refused(run, "convert", "gguf", tiny_gguf, tmp_path / "a.m", tmp_path / "a.t", "--force")
    assert "a.t is a folder; give the name of a file in it" in sentence
    assert not (tmp_path / "a.m").exists()


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="this system has no /dev/null")
def test_a_conversion_onto_a_device(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    sentence = refused(run, "convert", "gguf", tiny_gguf, "/dev/null", tmp_path / "a.t", "--force")
    assert "/dev/null is a device or pipe" in sentence


def test_a_conversion_into_a_folder_that_may_not_be_written_to(
    run: Run, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # who runs tests may be allowed everything
    sentence = refused(run, "convert", "gguf", tiny_gguf, tmp_path / "a.m", tmp_path / "a.t")
    assert f"you may not write into the folder {tmp_path}" in sentence


@pytest.mark.parametrize("name", ["a.m", "a.t"])
def test_a_conversion_onto_a_file_that_is_there(run: Run, tiny_gguf: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("dear to someone")
    arguments = ["convert", "gguf", tiny_gguf, tmp_path / "a.m", tmp_path / "a.t"]
    sentence = refused(run, *arguments)
    assert f"{name} is there already; give another name, or --force to write over it" in sentence
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "dear to someone")]
    assert run(*arguments, "--force").status == 0


def test_a_conversion_onto_a_disk_without_room(
    run: Run, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    sentence = refused(run, "convert", "gguf", tiny_gguf, tmp_path / "a.m", tmp_path / "a.t")
    assert re.search(rf"a\.m needs \d\.\d MiB, 0\.0 MiB free in {re.escape(str(tmp_path))}; free some space", sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [b"\x00\x7e", b"\x00\x7c"])  # NaN and infinity in float16
def test_a_scale_that_is_no_number(run: Run, tiny: TinyModel, tmp_path: Path, scale: bytes) -> None:
    data = bytearray(tiny.model.read_bytes())
    data[-18:-16] = scale  # the head's last block
    (tmp_path / "bad.m").write_bytes(data)
    common = ["--model", tmp_path / "bad.m", "--tokenizer", tiny.tokenizer, "--prompt", "x", "--device", "cpu"]
    sentence = refused(run, "inference", *common)
    assert re.search(r"row 287 of tensor head holds NaN or infinity; the file is damaged", sentence)
