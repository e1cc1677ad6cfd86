from __future__ import annotations

import io
import re

from rich.console import Console

from dllama_gpu.cli.chat.answer_view import AnswerView


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
