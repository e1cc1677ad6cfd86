"""What a person sees while long steps run: a live line on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_REFRESH_SECONDS = 0.1


class Step:
    """A running step; `note` says how far it is."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._started = time.monotonic()
        self._drawn = float("-inf")

    @property
    def seconds(self) -> float:
        """Time since the step began."""
        return time.monotonic() - self._started

    def note(self, text: str) -> None:
        """Shows `text` behind the title on a terminal; does nothing elsewhere."""
        now = time.monotonic()
        if self._console.live and now - self._drawn >= _REFRESH_SECONDS:
            self._drawn = now
            self._console.redraw(f"{self._title} ({self.seconds:.0f} s) {text}")

    def note_bytes(self, done: int, total: int) -> None:
        """Shows `done` of `total` bytes as a bar."""
        filled = 24 * done // total if total else 24
        bar = "#" * filled + "-" * (24 - filled)
        self.note(f"[{bar}] {done / 1e6:.0f} of {total / 1e6:.0f} MB")


class Console:
    """Writes to `stream`, standard error by default, so that standard output holds the model's text alone."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.live = self._stream.isatty()

    def say(self, line: str) -> None:
        """Writes one line."""
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def redraw(self, line: str) -> None:
        """Replaces the terminal's current line; what does not fit is cut."""
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{line[:width]:<{width}}")
        self._stream.flush()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Announces a long step and says how long it took; a failing step leaves its title standing."""
        step = Step(self, title)
        if self.live:
            self.redraw(f"{title} ...")
        else:
            self.say(f"{title} ...")
        try:
            yield step
        except BaseException:
            if self.live:
                self.redraw(f"{title}: stopped")
                self.say("")
            raise
        if self.live:
            self.redraw("")
            self._stream.write("\r")
        self.say(f"{title}: done in {step.seconds:.1f} s")

    def confirm(self, question: str) -> bool:
        """Asks on a terminal and takes Enter for yes; without one, nobody can be asked and the answer is yes."""
        if not (self.live and sys.stdin.isatty()):
            return True
        self._stream.write(f"{question} [Y/n] ")
        self._stream.flush()
        return sys.stdin.readline().strip().lower() in ("", "y", "yes")
