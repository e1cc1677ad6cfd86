"""Ctrl-C that stops an answer and not the program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopWish:
    """Whether Ctrl-C was pressed."""

    pressed: bool = False

    def is_pressed(self) -> bool:
        """The same as a call."""
        return self.pressed


@contextmanager
def ctrl_c_stops() -> Iterator[StopWish]:
    """Inside the block, which must run in the main thread, Ctrl-C is only remembered; a third one raises.

    So a step is always done whole, on all nodes of a cluster; the way out of a step that hangs is to insist.
    """
    wish = StopWish()
    n_pressed = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal n_pressed
        n_pressed += 1
        wish.pressed = True
        if n_pressed >= 3:
            raise KeyboardInterrupt

    usual = signal.signal(signal.SIGINT, remember)
    try:
        yield wish
    finally:
        signal.signal(signal.SIGINT, usual)
