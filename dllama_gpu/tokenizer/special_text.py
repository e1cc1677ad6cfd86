"""Finding the texts of special tokens inside a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_MAX_LENGTH = 128


class SpecialText:
    """Cuts a text at the special tokens written in it; the longest one wins where several begin."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """`ids` by text. Empty texts and such of more than 128 characters, which no model has, are never found."""
        self._ids = {text: token_id for text, token_id in ids.items() if 0 < len(text) <= _MAX_LENGTH}
        self._pattern = re.compile(_either(sorted(self._ids))) if self._ids else None

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of `text` in order: plain text (never empty) as str, special tokens as their ids."""
        start = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            if match.start() > start:
                yield text[start : match.start()]
            yield self._ids[match.group()]
            start = match.end()
        if start < len(text):
            yield text[start:]


def _either(texts: list[str]) -> str:
    """Expression for the longest of the sorted `texts`: a tree, so that time does not grow with their number."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[:1], []).append(text)
    may_end = groups.pop("", None) is not None
    branches = []
    for members in groups.values():
        prefix = _common_prefix(members[0], members[-1])
        branches.append(re.escape(prefix) + _either([member[len(prefix) :] for member in members]))
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)})" + ("?" if may_end else "")


def _common_prefix(first: str, last: str) -> str:
    length = next(
        (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return first[:length]
