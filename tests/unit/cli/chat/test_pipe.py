"""`dllama-gpu chat` over a pipe, from the command line to the answers."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dllama_gpu.cli.chat.plain import entries
from tests.support.tiny import TinyModel
from tests.unit.cli.conftest import Outcome, Run


@pytest.fixture
def chat(run: Run, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(text: str | bytes, *options: object) -> Outcome:
        data = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        files = ["--model", tiny.model, "--tokenizer", tiny.tokenizer, "--nthreads", 1]
        return run("chat", *files, "--temperature", 0, *options)

    return call


def test_answers_alone_go_to_standard_output(chat: Run) -> None:
    one = chat("a\n", "--steps", 4)
    assert one.status == 0
    assert len(one.out) > 1
    two = chat("a\n/reset\na\n", "--steps", 4)
    assert two.out == 2 * one.out
    assert "a new conversation" in two.err


def test_the_template_and_the_system_message_reach_the_model(chat: Run) -> None:
    plain = chat("a\n/stats\n", "--steps", 2)
    assert plain.value("prompt").startswith("20 tokens, 0 of them kept")
    assert chat("a\n/stats\n", "--steps", 2, "--system", "xyz").value("prompt").startswith("33 tokens")
    assert chat("a\n/stats\n", "--steps", 2, "--chat-template", "llama2").value("prompt").startswith("17 tokens")


def test_lines_between_quotes_are_one_message(chat: Run) -> None:
    done = chat('"""\na\nb\n"""\n/stats\n', "--steps", 2)
    assert done.value("prompt").startswith("22 tokens")
    assert done.value("conversation") == "1 turn"


def test_the_context_is_what_is_asked_for_within_the_models(chat: Run) -> None:

    done = chat("/stats\n", "--max-seq-len", 40)
    assert "context      0 of 40 positions are in use" in done.err
    assert "context      0 of 64 positions are in use" in chat("/stats\n", "--max-seq-len", 4000).err


def test_no_input_is_no_failure(chat: Run) -> None:
    done = chat("")
    assert done.status == 0
    assert done.out == ""


def test_a_closed_standard_input_is_an_empty_one(
    chat: Run, run: Run, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    done = run("chat", "--model", tiny.model, "--tokenizer", tiny.tokenizer, "--nthreads", 1)
    assert (done.status, done.out) == (0, "")


def test_an_entry_that_fails_is_told_and_the_status_says_so(chat: Run) -> None:
    done = chat("/foo\na\n", "--steps", 2)
    assert done.status == 1
    assert "error: there is no command /foo" in done.err
    assert done.out


def test_bytes_that_are_no_text_end_the_chat_with_a_sentence(chat: Run) -> None:
    done = chat(b"\xef\xbb\xbfa\r\n\xff\n", "--steps", 2)
    assert done.status == 1
    assert "line 2 of standard input is not UTF-8 text: its byte 0 is 0xff" in done.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", "0"], "--steps: 0 is out of range"),
        (["--chat-template", "x"], "there is no chat template 'x'; choose one of"),
        (["--temperature", "-1"], "temperature is -1.0, but it must be"),
        (["--ratio", "1,1"], "--ratio has a meaning with --workers only"),
        (["--prompt", "x"], "unknown option '--prompt'"),
    ],
)
def test_a_wrong_option_is_explained_before_anything_is_loaded(run: Run, options: list[str], sentence: str) -> None:
    done = run("chat", "--model", "unread.gguf", *options)
    assert done.status == 2
    assert sentence in done.err
    assert "`dllama-gpu chat --help`" in done.err


def test_entries_are_lines_and_blocks() -> None:
    def lines() -> Iterator[str]:
        yield from ("a\n", '"""b\n', 'c"""\n', '"""d"""\n', '"""e\n', "f\n")

    assert list(entries(lines())) == ["a\n", '"""b\nc"""\n', '"""d"""\n', '"""e\nf\n']


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one process is POSIX's")
def test_ctrl_c_in_a_pipe_ends_the_program(smollm2_gguf: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dllama_gpu.cli.main", "chat", "--model", str(smollm2_gguf)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Write a very long story.\n")
    process.stdin.flush()
    assert process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in err
