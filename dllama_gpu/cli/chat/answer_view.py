"""An answer on a terminal: thoughts dimmed, then what the model says."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from dllama_gpu.cli.chat.markdown_stream import MarkdownStream
from dllama_gpu.tokenizer.thoughts import ThoughtSplitter


class AnswerView:
    """Draws one answer as Markdown while it is being written."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._splitter = ThoughtSplitter()
        self._stream: MarkdownStream | None = None
        self._is_thought = False

    def write(self, piece: str) -> None:
        """Draws the next piece."""
        self._draw(self._splitter.push(piece))

    def end(self) -> None:
        """Draws what is left."""
        self._draw(self._splitter.flush())
        if self._stream is not None:
            self._stream.end()

    def _draw(self, parts: Iterable[tuple[bool, str]]) -> None:
        for is_thought, text in parts:
            if self._stream is not None and is_thought != self._is_thought:
                self._stream.end()
                self._stream = MarkdownStream(self._console, blank_first=True)
            elif self._stream is None:
                self._stream = MarkdownStream(self._console, style="dim" if is_thought else "none")
            self._is_thought = is_thought
            self._stream.push(text)
