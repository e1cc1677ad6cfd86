from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dllama_gpu.cli.chat.answer_view import AnswerView
from dllama_gpu.cli.chat.thoughts import ThoughtSplitter


def split(pieces: list[str]) -> tuple[str, str]:
    """Thoughts and what is said."""
    splitter = ThoughtSplitter()
    parts = [part for piece in pieces for part in splitter.push(piece)] + list(splitter.flush())
    return tuple("".join(text for is_thought, text in parts if is_thought is kind) for kind in (True, False))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("plain", "", "plain"),
        ("<think>a</think>b", "a", "b"),
        (" \n<think>\na < b</think>\n\nb", "\na < b", "\n\nb"),
        ("<think>never ended", "never ended", ""),
        ("<think>nearly </thin", "nearly </thin", ""),
        ("a <think> later", "", "a <think> later"),
        ("<thinking>", "", "<thinking>"),
        ("<th", "", "<th"),
        ("</think>", "", "</think>"),
        ("<think></think><think>x", "", "<think>x"),
        ("", "", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_thoughts_are_told_from_what_is_said(text: str, thought: str, said: str, size: int) -> None:
    assert split([text[i : i + size] for i in range(0, len(text), size)]) == (thought, said)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "/think", ">", "a", "\n", "<th"]), max_size=12))
def test_nothing_is_lost_but_the_two_tags(pieces: list[str]) -> None:
    text = "".join(pieces)
    thought, said = split(pieces)
    begins = text.lstrip().startswith("<think>")
    if not begins:
        assert (thought, said) == ("", text)
    else:
        end = "</think>" if "</think>" in text else ""
        assert f"<think>{thought}{end}{said}" == text.lstrip()


def test_thoughts_are_dimmed_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system="standard")
    view = AnswerView(console)
    for piece in ("<thi", "nk>let *me*", " see</think>", "\n\nIt is **4**."):
        view.write(piece)
    view.end()
    assert isinstance(console.file, io.StringIO)
    final = re.split(r"\x1b\[2K", console.file.getvalue())
    assert any("\x1b[2mlet " in part for part in final)
    assert "It is \x1b[1m4\x1b[0m." in final[-1]
    assert "think>" not in console.file.getvalue()


def test_an_answer_without_thoughts_is_not_dimmed() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system="standard")
    view = AnswerView(console)
    view.write("It is 4.")
    view.end()
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[2m" not in console.file.getvalue()
    assert "It is 4." in console.file.getvalue()
