"""What a person sees: the model's text on standard output, everything else on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dllama_gpu.cli.terminal_text import one_line, without_controls

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE_SECONDS = 0.3
_LINE_EVERY_SECONDS = 10.0

Advance = Callable[[int, int], None]
"""Told (done, total)."""


def note(label: str, text: str) -> None:
    """Writes one labelled line to standard error."""
    print(f"{label:<12} {one_line(text)}", file=sys.stderr, flush=True)


def blank_line() -> None:
    """Sets apart what follows on standard error."""
    print(file=sys.stderr, flush=True)


class TextOutput:
    """Standard output as a place for text that comes in pieces.

    On a terminal the prompt stands dimmed before it and control characters are taken out; a file or a pipe gets the
    generated text alone, as it is, in UTF-8 whatever the locale.
    """

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()
        self._last = "\n"
        if hasattr(sys.stdout, "reconfigure"):  # not where a test has put something else there
            if self._on_terminal:
                sys.stdout.reconfigure(errors="replace")  # what a terminal cannot show becomes a question mark
            else:
                sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")

    def show_prompt(self, text: str) -> None:
        """Writes the text that will be continued, on a terminal only."""
        if self._on_terminal:
            from rich.console import Console
            from rich.text import Text

            shown = Text(without_controls(text), style="dim")
            Console(highlight=False, soft_wrap=True).print(shown, end="")
            sys.stdout.flush()
            self._last = text[-1:]

    def write(self, piece: str) -> None:
        """Writes a piece of text at once."""
        if self._on_terminal:
            piece = without_controls(piece)
        if piece:
            sys.stdout.write(piece)
            sys.stdout.flush()
            self._last = piece[-1]

    def end(self) -> None:
        """Ends the last line on a terminal if it has no end yet."""
        if self._on_terminal and self._last != "\n":
            self.write("\n")


@contextmanager
def progress(title: str, unit: str, *, rate: bool = False) -> Iterator[Advance]:
    """A progress display on standard error for something that takes more than a moment.

    A bar on a terminal, which is gone when it is done; elsewhere a line every ten seconds. `unit` is "bytes" or what is
    counted; `rate` shows bytes a second and the time left.
    """
    display = _Bar(title, unit, rate) if sys.stderr.isatty() else _Lines(title, rate)
    try:
        yield display.advance
    finally:
        display.close()


class _Bar:
    def __init__(self, title: str, unit: str, rate: bool) -> None:
        self._title = title
        self._unit = unit
        self._rate = rate
        self._started = time.monotonic()
        self._bar: Progress | None = None

    def advance(self, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._started < _PATIENCE_SECONDS:
                return
            self._bar = self._make_bar()
            self._bar.start()
            self._bar.add_task(self._title, total=total, completed=done)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _make_bar(self) -> Progress:
        from rich import progress as rich_progress
        from rich.console import Console

        count: rich_progress.ProgressColumn = (
            rich_progress.DownloadColumn(binary_units=True)
            if self._unit == "bytes"
            else rich_progress.TextColumn("{task.completed:.0f}/{task.total:.0f} " + self._unit)
        )
        return rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            count,
            *([rich_progress.TransferSpeedColumn()] if self._rate else []),
            rich_progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )


class _Lines:
    def __init__(self, title: str, rate: bool) -> None:
        self._title = title
        self._rate = rate
        self._written = self._started = time.monotonic()
        self._done_at_start: int | None = None

    def advance(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._done_at_start is None:
            self._done_at_start = done
        if now - self._written >= _LINE_EVERY_SECONDS:
            self._written = now
            line = f"{self._title}: {100 * done // max(total, 1)} %"
            per_second = (done - self._done_at_start) / (now - self._started)
            if self._rate and per_second > 0:
                line += f", {per_second / 1e6:.1f} MB/s, {(total - done) / per_second:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves nothing to take back."""


def size_text(n_bytes: int) -> str:
    """A size for people: `81.6 MiB`, `3.2 GiB`."""
    if n_bytes >= 1 << 30:
        return f"{n_bytes / (1 << 30):.1f} GiB"
    return f"{n_bytes / (1 << 20):.1f} MiB"
