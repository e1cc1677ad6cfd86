"""Markdown on a terminal while it is still being written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_SHORTEST_PAUSE = 0.06
_COST_SHARE = 8  # of the time no more than an eighth goes into drawing

# Tags are shown as they stand: a terminal has no use for them, and rich would leave them out.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def split_blocks(text: str) -> list[str]:
    """The text cut before each of its blocks: paragraphs, lists, code … More text can only change the last one."""
    starts = [token.map[0] for token in _PARSER.parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    lines = text.split("\n")
    ends = [0, *starts[1:], len(lines)]
    blocks = ["\n".join([*lines[begin:end], ""]) for begin, end in itertools.pairwise(ends)]
    return [*blocks[:-1], blocks[-1].removesuffix("\n")]


def markdown(text: str, style: str = "none") -> Markdown:
    """The text as rich draws it, in the terminal's own colours, with addresses written out."""
    drawn = Markdown("", code_theme="ansi_dark", hyperlinks=False, style=style)
    drawn.parsed = _PARSER.parse(text)
    return drawn


class MarkdownStream:
    """Draws one answer: finished blocks once and for all, the last one again and again.

    Only the lower end of a last block higher than the screen is drawn until it is finished, so nothing above the screen
    would have to be changed.
    """

    def __init__(
        self,
        console: Console,
        *,
        style: str = "none",
        blank_first: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._style = style
        self._clock = clock
        self._text = ""
        self._live: Live | None = None
        self._next_drawing = 0.0
        self._has_blocks = blank_first

    def push(self, piece: str) -> None:
        """Takes the next piece of text, which needs no end of a line."""
        self._text += piece
        started = self._clock()
        if started < self._next_drawing:
            return
        *finished, self._text = split_blocks(self._text)
        for block in finished:
            self._print(block)
        if self._text.strip():
            self._draw()
        took = self._clock() - started
        self._next_drawing = started + max(_SHORTEST_PAUSE, _COST_SHARE * took)

    def end(self) -> None:
        """Draws what is left."""
        for block in split_blocks(self._text):
            self._print(block)
        self._stop()
        self._text = ""

    def _print(self, block: str) -> None:
        if not block.strip():
            return
        self._stop()
        self._console.print(_Block(block, self._style, blank_first=self._has_blocks))
        self._has_blocks = True

    def _draw(self) -> None:
        tail = _Block(self._text, self._style, blank_first=self._has_blocks, only_tail=True)
        if self._live is None:
            self._live = Live(tail, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start(refresh=True)
        else:
            self._live.update(tail, refresh=True)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Block:
    """A block without the blank lines that rich puts around some kinds; `only_tail`: as much as the screen has room."""

    def __init__(self, text: str, style: str, *, blank_first: bool, only_tail: bool = False) -> None:
        self._text = text
        self._style = style
        self._blank_first = blank_first
        self._only_tail = only_tail

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(markdown(self._text, self._style), options.update(height=None), pad=False)
        while lines and _is_blank(lines[0]):
            del lines[0]
        while lines and _is_blank(lines[-1]):
            del lines[-1]
        if self._blank_first:
            lines = [[], *lines]
        if self._only_tail:
            lines = lines[-max(1, console.height - 2) :]
        for line in lines:
            yield from line
            yield Segment.line()


def _is_blank(line: list[Segment]) -> bool:
    return not any(segment.text.strip() for segment in line)
