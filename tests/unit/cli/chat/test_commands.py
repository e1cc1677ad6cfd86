from __future__ import annotations

import pytest

from dllama_gpu.cli.chat.commands import COMMANDS, Command, Message, help_text, is_open_block, read_entry, unquoted
from dllama_gpu.errors import DllamaError


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("hello", Message("hello")),
        ("  hello \n", Message("hello")),
        ("two\nlines", Message("two\nlines")),
        ("", None),
        (" \n\t", None),
        ("/reset", Command("reset")),
        ("/RESET  ", Command("reset")),
        ("/clear", Command("reset")),
        ("/exit", Command("quit")),
        ("/system  You are\nkind. ", Command("system", "You are\nkind.")),
        ("/system", Command("system")),
        ("/save my chat.json", Command("save", "my chat.json")),
        (" /reset", Message("/reset")),
        ("/etc/passwd: what is it?", Message("/etc/passwd: what is it?")),
        ("/1", Message("/1")),
        ("/", Message("/")),
        ('"""/reset"""', Message("/reset")),
        ('"""\n  kept\n\nas it is\n"""\n', Message("  kept\n\nas it is")),
        ('"""never ended', Message("never ended")),
        ('""""""', None),
    ],
)
def test_an_entry_is_a_command_a_message_or_nothing(text: str, entry: Command | Message | None) -> None:
    assert read_entry(text) == entry


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("/rest", r"there is no command /rest \(did you mean /reset\?\); put a space before it"),
        ("/foo bar", r"there is no command /foo \(/help lists them\)"),
        ("/reset now", "/reset takes nothing behind it"),
        ("/save", "/save needs a file, such as /save chat.json"),
        ("/load  ", "/load needs a file"),
    ],
)
def test_a_command_that_cannot_be_meant_is_explained(text: str, sentence: str) -> None:
    with pytest.raises(DllamaError, match=sentence):
        read_entry(text)


@pytest.mark.parametrize(
    ("text", "is_open"),
    [('"""', True), ('"""a', True), ('"""a\nb', True), ('"""a"""', False), ('"""a\n"""\n', False), ('a """', False)],
)
def test_a_block_is_open_until_its_quotes_come_again(text: str, is_open: bool) -> None:
    assert is_open_block(text) is is_open


def test_quotes_around_a_text_are_taken_off_in_pairs() -> None:
    assert [unquoted(text) for text in ('"a b"', "''", '"', "a", "'a\"")] == ["a b", "", '"', "a", "'a\""]


def test_the_help_names_every_command() -> None:
    lines = help_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"/{name}" for name in COMMANDS]
