from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dllama_gpu.cli.chat.markdown_stream import MarkdownStream, split_blocks

ANSWER = """# Title

A *first* paragraph
of two lines.

- one
- two

  more of two

```python
def f():

    return "<b>"
```

| a | b |
|---|---|
| 1 | 2 |

Setext
======

<think>not a tag for a terminal</think>

Last [link](https://example.org/x)."""


def screen(*, width: int = 60, height: int = 20) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, color_system=None, force_terminal=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


@pytest.mark.parametrize(
    "blocks",
    [
        [""],
        ["one line"],
        ["one\n\n", "two"],
        ["- a\n- b\n\n- c"],
        ["- a\n\n", "text\n\n"],
        ["text\n", "```\ncode\n\nmore"],
        ["```\ncode\n```\n"],
        ["\n\na\n\n", "---\n", "# b\n", "> c"],
    ],
)
def test_a_text_is_cut_before_its_blocks(blocks: list[str]) -> None:
    assert split_blocks("".join(blocks)) == blocks


@given(st.lists(st.sampled_from(["a", "\n", "\n\n", "- ", "1. ", "```", "> ", "# ", "|", "---", "  ", "*", "==="])))
def test_cutting_loses_no_text_and_cuts_at_ends_of_lines(pieces: list[str]) -> None:
    blocks = split_blocks("".join(pieces))
    assert "".join(blocks) == "".join(pieces)
    assert all(block.endswith("\n") for block in blocks[:-1])


@given(st.integers(1, 40))
def test_however_the_text_comes_the_screen_shows_the_same(size: int) -> None:
    whole = screen()
    stream = MarkdownStream(whole)
    stream.push(ANSWER)
    stream.end()
    console = screen()
    stream = MarkdownStream(console, clock=iter(range(10**6)).__next__)
    for begin in range(0, len(ANSWER), size):
        stream.push(ANSWER[begin : begin + size])
    stream.end()
    assert text_of(console) == text_of(whole)


def test_what_was_written_is_all_there() -> None:
    console = screen()
    stream = MarkdownStream(console)
    stream.push(ANSWER)
    stream.end()
    shown = text_of(console)
    for part in (
        "Title",
        "A first paragraph of two lines.",
        " • two",
        '    return "<b>"',
        "<think>not a tag",
        "Setext",
    ):
        assert part in shown
    assert "link (https://example.org/x)" in shown


def test_only_the_lower_end_of_a_block_higher_than_the_screen_is_drawn_while_it_grows() -> None:
    console = Console(file=io.StringIO(), width=40, height=10, force_terminal=True, color_system=None)
    stream = MarkdownStream(console, clock=iter(range(10**6)).__next__)
    stream.push("```\n" + "".join(f"line {i}\n" for i in range(30)))
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert "line 29" in drawn
    assert "line 5\n" not in drawn.replace(" \n", "\n")
    stream.end()
    assert "line 5 " in console.file.getvalue().removeprefix(drawn)


def test_an_answer_of_nothing_draws_nothing() -> None:
    console = screen()
    stream = MarkdownStream(console)
    stream.push("")
    stream.push(" \n")
    stream.end()
    assert text_of(console) == ""
