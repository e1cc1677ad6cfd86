"""What strangers' files say must not move the cursor, colour the terminal or ring when a person is shown it."""

from __future__ import annotations

# Control characters, ESC among them; line ends and tabs belong to a text.
_HARMFUL = {code: None for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\n\t"}


def without_controls(text: str) -> str:
    """A text of any number of lines without control characters other than line ends and tabs."""
    return text.translate(_HARMFUL)


def one_line(text: str) -> str:
    """The text on one line: white space is a space, and what is not printable is written as Python escapes it."""
    return "".join(" " if char.isspace() else char if char.isprintable() else ascii(char)[1:-1] for char in text)
