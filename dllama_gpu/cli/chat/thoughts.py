"""Tells what a reasoning model thinks from what it says."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto

BEGIN, END = "<think>", "</think>"


class _Place(Enum):
    START = auto()
    THINKING = auto()
    SAYING = auto()


class ThoughtSplitter:
    """Splits an answer that comes in pieces. Thoughts begin with `<think>` at its very start and end at `</think>`."""

    def __init__(self) -> None:
        self._place = _Place.START
        self._rest = ""

    def push(self, piece: str) -> Iterator[tuple[bool, str]]:
        """Yields texts, and of each whether it is thought; what may be the beginning of a tag waits for more."""
        self._rest += piece
        if self._place is _Place.START:
            begun = self._rest.lstrip()
            if begun.startswith(BEGIN):
                self._place, self._rest = _Place.THINKING, begun.removeprefix(BEGIN)
            elif not BEGIN.startswith(begun):
                self._place = _Place.SAYING
        if self._place is _Place.THINKING:
            thought, end, said = self._rest.partition(END)
            if end:
                self._place, self._rest = _Place.SAYING, said
            else:
                n_kept = _n_begun(thought)
                thought, self._rest = thought[: len(thought) - n_kept], thought[len(thought) - n_kept :]
            if thought:
                yield True, thought
        if self._place is _Place.SAYING and self._rest:
            yield False, self._rest
            self._rest = ""

    def flush(self) -> Iterator[tuple[bool, str]]:
        """Yields what waited, now that nothing more comes."""
        if self._rest:
            yield self._place is _Place.THINKING, self._rest
            self._rest = ""


def _n_begun(text: str) -> int:
    """How many characters at the end of the text may be the beginning of `END`."""
    return next(n for n in range(len(END) - 1, -1, -1) if text.endswith(END[:n]))
