"""Values out of a stranger's file as error messages show them: short, whatever the file holds."""

from __future__ import annotations

_LONGEST_TEXT = 200


def shown_value(value: object) -> str:
    """A value as Python writes it; a list is counted and a long text is cut."""
    if isinstance(value, list):
        return f"a list of {len(value)} value{'' if len(value) == 1 else 's'}"
    if isinstance(value, str):
        # Cut before it is quoted, so that no escape sequence is.
        return repr(shown_text(value))
    return repr(value)


def shown_text(text: str) -> str:
    """A text, cut where it is long."""
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"
