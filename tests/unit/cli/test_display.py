from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from dllama_gpu.cli import display
from dllama_gpu.cli.display import TextOutput, note, progress, size_text
from tests.unit.cli.conftest import Terminal


def test_control_characters_do_not_reach_a_terminal(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    output = TextOutput()
    output.write("tab\t, bell\x07, red\x1b[31m, home\r, C1\x9b, Grüße 😀\n")
    assert terminal.text == "tab\t, bell, red[31m, home, C1, Grüße 😀\n"


def test_a_pipe_gets_every_character_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output = TextOutput()
    output.show_prompt("not shown")
    output.write("red\x1b[31m\r")
    output.end()
    assert capsys.readouterr().out == "red\x1b[31m\r"


def test_a_pipe_gets_utf8_whatever_the_locale_and_no_line_end_of_ours() -> None:
    code = (
        "from dllama_gpu.cli.display import TextOutput\n"
        "output = TextOutput(); output.write('Gr\\u00fc\\u00dfe\\nx'); output.end()"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert done.stdout == "Grüße\nx".encode()


def test_a_note_is_one_line_without_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    note("model", "red\x1b[31m\r\nname\u202e.gguf")
    assert capsys.readouterr().err == "model        red\\x1b[31m  name\\u202e.gguf\n"


@pytest.mark.parametrize(("pieces", "shown"), [(["a", "b"], "ab\n"), (["a\n", ""], "a\n"), ([], "")])
def test_the_last_line_on_a_terminal_is_ended_once(
    on_terminal: Callable[[], Terminal], pieces: list[str], shown: str
) -> None:
    terminal = on_terminal()
    output = TextOutput()
    for piece in pieces:
        output.write(piece)
    output.end()
    assert terminal.text == shown


def test_pieces_are_written_at_once(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    output = TextOutput()
    output.write("half a wo")
    assert terminal.text == "half a wo"


def test_a_short_step_shows_no_bar(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    with progress("loading", "bytes") as advance:
        advance(1, 2)
        advance(2, 2)
    assert terminal.text == ""


@pytest.mark.parametrize(("unit", "shown"), [("bytes", "1.0/2.0 MiB"), ("windows", "1048576/2097152 windows")])
def test_a_long_step_shows_a_bar_and_takes_it_away(
    on_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch, unit: str, shown: str
) -> None:
    terminal = on_terminal()
    monkeypatch.setattr(display, "_PATIENCE_SECONDS", 0.0)
    with progress("loading", unit) as advance:
        advance(1 << 20, 2 << 20)
    assert "loading" in terminal.text
    assert shown in terminal.text
    assert terminal.text.endswith("\x1b[2K")  # the line is erased


def test_elsewhere_than_on_a_terminal_a_long_step_writes_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not sys.stderr.isatty()
    now = 0.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    with progress("loading", "bytes") as advance:
        for second in range(25):
            now = float(second)
            advance(second, 100)
    assert capsys.readouterr().err == "loading: 10 %\nloading: 20 %\n"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 MiB"), (96_600_000, "92.1 MiB"), (1 << 30, "1.0 GiB"), (40 << 30, "40.0 GiB")]
)
def test_sizes_are_written_in_binary_units(size: int, text: str) -> None:
    assert size_text(size) == text
