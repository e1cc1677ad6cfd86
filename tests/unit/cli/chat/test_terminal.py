"""`dllama-gpu chat` on a real terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from dllama_gpu.cli.chat.terminal import CommandCompleter, key_bindings, open_history

pexpect = pytest.importorskip("pexpect", reason="pexpect needs a POSIX terminal")
if sys.platform == "win32":
    pytest.skip("pexpect's terminals are POSIX's", allow_module_level=True)

PROMPT = re.compile(r"36;1m> \x1b\[0m")
Chat = Callable[..., "pexpect.spawn"]


@pytest.fixture
def chat(smollm2_gguf: Path, tmp_path: Path) -> Iterator[Chat]:
    """Starts chats in a window of 90 by 30 with a data folder of their own."""
    started = []

    def start(*options: str, terminal: str = "xterm") -> pexpect.spawn:
        environment = {**os.environ, "TERM": terminal, "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
        environment["PROMPT_TOOLKIT_NO_CPR"] = "1"  # nobody here answers where the cursor stands
        environment.pop("NO_COLOR", None)
        child = pexpect.spawn(
            sys.executable,
            ["-m", "dllama_gpu.cli.main", "chat", "--model", str(smollm2_gguf), "--temperature", "0", *options],
            env=environment,
            dimensions=(30, 90),
            timeout=30,
            encoding="utf-8",
        )
        child.logfile_read = io.StringIO()
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def send(child: pexpect.spawn, text: str) -> None:
    child.expect(PROMPT)
    child.send(text)


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on_and_ctrl_d_ends_it(chat: Chat, tmp_path: Path) -> None:
    child = chat()
    send(child, "Write a very long story about a king.\r")
    child.expect("Once upon a time")
    child.sendintr()
    child.expect("stopped")
    send(child, "/stats\r")
    child.expect("conversation 1 turn")
    send(child, "\x03")  # on an empty line nothing happens
    child.send("/quiet\x03")  # an entry is dropped
    send(child, "\x04")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    assert "Traceback" not in child.logfile_read.getvalue()
    (history,) = tmp_path.rglob("chat-history")
    assert "+Write a very long story about a king." in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_a_message_of_two_lines_and_the_history_of_the_last_chat(chat: Chat) -> None:
    child = chat("--steps", "8")
    send(child, "Hello\x1b\rDear\x0amodel\r")
    child.expect("as many tokens as --steps allows")
    send(child, "/stats\r")
    child.expect("answer +8 tokens")
    send(child, "\x04")
    child.expect(pexpect.EOF)
    again = chat("--steps", "8", "--plain")
    send(again, "\x1b[A")  # up: /stats
    again.expect("/stats")
    again.send("\x1b[A\x1b[A\x1b[A")
    again.expect("Hello")
    again.send("\x03")
    send(again, "\x04")
    again.expect(pexpect.EOF)


def test_a_chat_without_history_keeps_nothing(chat: Chat, tmp_path: Path) -> None:
    child = chat("--no-history", "--steps", "2")
    send(child, "Hi\r")
    child.expect("--steps allows")
    send(child, "/quit\r")
    child.expect(pexpect.EOF)
    assert list(tmp_path.rglob("chat-history")) == []


def test_a_dumb_terminal_gets_plain_text(chat: Chat) -> None:
    child = chat("--steps", "4", terminal="dumb")
    child.expect("> ")
    child.send("Hi\r")
    child.expect("--steps allows")
    child.send("\x04")
    child.expect(pexpect.EOF)


def entered(keys: str) -> str:
    """What the prompt returns for these keys."""
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys)
        prompt: PromptSession[str] = PromptSession(
            input=keyboard, output=DummyOutput(), multiline=True, key_bindings=key_bindings()
        )
        return prompt.prompt()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("one\r", "one"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\x0atwo\r", "one\ntwo"),
        ('"""one\rtwo"""\r', '"""one\ntwo"""'),
        ("\x1b[200~pasted\nlines\x1b[201~\r", "pasted\nlines"),
    ],
)
def test_enter_sends_and_other_keys_begin_a_new_line(keys: str, text: str) -> None:
    assert entered(keys) == text


@pytest.mark.parametrize(
    ("text", "names"),
    [("/s", ["/system", "/save", "/stats"]), ("/RE", ["/reset", "/retry"]), ("/save x", []), ("x", []), ("/zz", [])],
)
def test_commands_are_completed(text: str, names: list[str]) -> None:
    found = CommandCompleter().get_completions(Document(text), CompleteEvent())
    assert [completion.text for completion in found] == names


def test_a_history_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history, warning = open_history(tmp_path / "file" / "history")
    assert warning is not None
    assert "the history cannot be kept in" in warning
    history.append_string("x")
    assert history.get_strings() == ["x"]
