"""A chat over pipes: a line is a message, the answers go to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from dllama_gpu.cli.chat.commands import is_open_block
from dllama_gpu.cli.chat.interrupt import StopWish
from dllama_gpu.cli.display import TextOutput
from dllama_gpu.cli.terminal_text import without_controls
from dllama_gpu.errors import DllamaError


class PlainSurface:
    """Ctrl-C ends the program, as people expect of one in a pipe."""

    def __init__(self) -> None:
        self._output = TextOutput()
        self._lines = entries(_utf8_lines())
        self._asks = sys.stdin is not None and sys.stdin.isatty()

    def read(self, status: str) -> str | None:
        """The next line, or the lines between two `\"\"\"`. Raises DllamaError for what is not UTF-8."""
        if self._asks:
            print("> ", end="", file=sys.stderr, flush=True)
        return next(self._lines, None)

    def tell(self, text: str) -> None:
        """Writes to standard error."""
        print(without_controls(text), file=sys.stderr, flush=True)

    def complain(self, sentence: str) -> None:
        """Writes to standard error."""
        print(f"error: {without_controls(sentence)}", file=sys.stderr, flush=True)

    def stoppable(self) -> AbstractContextManager[StopWish]:
        """Never stopped."""
        return nullcontext(StopWish())

    def waiting(self) -> AbstractContextManager[object]:
        """Shows nothing."""
        return nullcontext()

    def write(self, piece: str) -> None:
        """Writes to standard output at once."""
        self._output.write(piece)

    def end_answer(self) -> None:
        """Every answer ends its line."""
        self._output.write("\n")


def entries(lines: Iterator[str]) -> Iterator[str]:
    '''Lines as they are, but those from a `"""` to the next as one entry; the end of the input ends that, too.'''
    for line in lines:
        block = line
        while is_open_block(block):
            more = next(lines, None)
            if more is None:
                break
            block += more
        yield block


def _utf8_lines() -> Iterator[str]:
    if sys.stdin is None:  # it was closed before the program began
        return
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise DllamaError(
                f"line {number} of standard input is not UTF-8 text: its byte {error.start} is "
                f"0x{line[error.start]:02x}; convert it to UTF-8"
            ) from None
